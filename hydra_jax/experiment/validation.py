"""What is decided on the validation part, which nothing is trained on: the spread of heads, and what to distil on."""

from collections.abc import Callable, Sequence
from dataclasses import replace
import functools
import json
import logging
from typing import Any

import jax
import numpy as np

from hydra_jax import store
from hydra_jax.data import fingerprint
from hydra_jax.evaluation import evaluate
from hydra_jax.evaluation.evaluate import apply_spread
from hydra_jax.experiment import provenance
from hydra_jax.experiment.plan import PlannedMethod
from hydra_jax.experiment.replicas import Replica, Trained, reuse_or_make
from hydra_jax.experiment.teachers import Teacher, evaluable
from hydra_jax.formats import digits
from hydra_jax.maths import calibration
from hydra_jax.maths.tasks import TASKS

logger = logging.getLogger(__name__)


def with_spread(
  group: Sequence[Replica], planned: PlannedMethod, trained: Sequence[Trained], teachers: Sequence[Teacher]
) -> list[Trained]:
  """Students whose heads disagree as much as the members on the validation part; labels are not read.

  Students of which the config does not ask it, and all where there is no validation part, stay as they are.

  Args:
    group: Replicas that were trained together.
    planned: The method.
    trained: The student of each replica.
    teachers: Of each replica.
  """
  wanted = getattr(planned.recipe.settings.own, 'calibrate_spread', False)
  if not wanted or any(replica.data.validation is None for replica in group):
    return list(trained)
  held_out = [replica.data.validation for replica in group if replica.data.validation is not None]
  code = [provenance.digest('training'), provenance.digest('evaluation'), provenance.definition(measured_spread)]
  sets = [fingerprint(split.x) for split in held_out]
  models = [(student.key, teacher.key) for student, teacher in zip(trained, teachers, strict=True)]
  key = store.key_of(dict(models=models, sets=sets, batch=group[0].config.evaluation.batch_size, code=code))

  def make(new, folder):
    del folder
    found = [measured_spread(*each) for each in zip(group, trained, teachers, strict=True)]
    (new / 'spread.json').write_text(json.dumps(found))

  folder = reuse_or_make(group[0], 'spread', key, f'{planned.label}: spread of heads', make)
  spreads = store.read_json(folder / 'spread.json')
  shown = ' to '.join(dict.fromkeys(digits(spread) for spread in (min(spreads), max(spreads))))
  logger.info(
    f'{planned.label}: heads are spread by {shown}, so that they disagree as much as the members on '
    f'{len(held_out[0].x):,} validation inputs'
  )
  found = []
  for i, (replica, student, spread) in enumerate(zip(group, trained, spreads, strict=True)):
    assert student.model is not None and student.place is not None
    model = apply_spread(student.model, spread, replica.data.task)
    place = replace(student.place, spread=spread)
    found.append(replace(evaluable(replica, model, f'{key}-{i}'), place=place))
  return found


def measured_spread(replica: Replica, student: Trained, teacher: Teacher) -> float:
  """The spread with which the heads of a student disagree as much as the members."""
  assert student.model is not None and teacher.validation is not None and replica.data.validation is not None
  outputs = evaluate.predict(student.model, replica.data.validation.x, replica.config.evaluation.batch_size)
  return float(matched(replica.data.task)(outputs, np.asarray(teacher.validation, np.float32)))


@functools.cache
def matched(task: str) -> Callable[[Any, Any], jax.Array]:
  """`calibration.matched_spread` for outputs of heads and members, compiled."""
  row = TASKS[task]
  return jax.jit(lambda heads, members: calibration.matched_spread(heads, members, row.rescale, row.size))


def best_of(group: Sequence[Replica], candidates: Sequence[tuple[PlannedMethod, list[Trained]]]) -> list[Trained]:
  """For each replica the candidate with the lowest mean NLL of the labels of the validation part.

  The first candidate is taken where another one is not better.

  Args:
    group: Replicas that were trained together.
    candidates: The same student, distilled on other inputs: how it was planned, and what came out for each replica.
  """
  chosen = []
  for i, replica in enumerate(group):
    scores = [validation_nll(replica, trained[i]) for _, trained in candidates]
    chosen.append(int(np.argmin(scores)))  # the first of equal ones
  counts = [f'{planned.choice} for {chosen.count(c)}' for c, (planned, _) in enumerate(candidates)]
  logger.info(f'{candidates[0][0].name}: inputs that predict the validation part best: {", ".join(counts)}')
  return [candidates[c][1][i] for i, c in enumerate(chosen)]


def validation_nll(replica: Replica, trained: Trained) -> float:
  """Mean NLL of the labels of the validation part, in the units of the network."""
  model, split = trained.model, replica.data.validation
  assert model is not None and split is not None
  score = evaluate.scorer(model, replica.data.task, replica.data.train.example.shape[1:], ('nll',))
  arrays = split.arrays(replica.data.scaling)
  found = evaluate.in_batches(score, replica.config.evaluation.batch_size, np.asarray(arrays['x']), arrays['y'])
  return float(np.mean(found['nll'], dtype=np.float64))
