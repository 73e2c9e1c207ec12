"""Fixed views: changed copies of the training inputs, on which the members predict once for all students.

A view is made in the step of a student, from the stored input and a key that is always the same. So a view takes no
memory. The members predict for it before training, and their predictions are kept. With V views, pass number p over the
data shows view p mod V of each input. Where V is at least the number of passes, no view is shown twice: then students
learn as much as from members that predict in each step, and the members predict once, and not once for each student.

In what is kept, row v · N + i is view v of example i.
"""

from collections.abc import Callable
import functools
from pathlib import Path

import jax
import numpy as np

from hydra_jax.data import Split, scale_inputs, standardised
from hydra_jax.errors import UserError
from hydra_jax.evaluation.evaluate import Model, in_batches, options_of
from hydra_jax.experiment.replicas import Replica
from hydra_jax.nets.cut import Network
from hydra_jax.progress import bar
from hydra_jax.training import augment
from hydra_jax.training.settings import TrainingSettings
from hydra_jax.training.step import key_of_views

ROLES = ('teacher', 'student')


def seed_of(replica: Replica, role: str) -> tuple[int, ...]:
  """The seed of all networks of a role in a replica."""
  return replica.config.seed, replica.index, ROLES.index(role)


def keys_of_seed(seed: tuple[int, ...]) -> jax.Array:
  """Two keys: how a network starts, and all that is random in its training but the order of the examples."""
  return jax.random.split(functools.reduce(jax.random.fold_in, seed[1:], jax.random.key(seed[0])))


def as_kept(outputs: np.ndarray, dtype: str) -> np.ndarray:
  """Outputs of members in the type in which they are kept.

  Raises:
    UserError: They are too large for it.
  """
  if np.abs(outputs).max() > np.finfo(dtype).max:
    raise UserError(f'teacher predictions are too large for {dtype}: set config.teacher.keep_as to float32')
  return outputs.astype(dtype)


def write_predictions(file: Path, replica: Replica, teacher: Model, training: TrainingSettings) -> None:
  """Writes the outputs of the members for all views of all training inputs.

  Args:
    file: An array `[M, V · N, C]` of the type `config.teacher.keep_as`, which is made.
    replica: With N training inputs.
    teacher: The M members.
    training: Of students: how they change inputs, and V.

  Raises:
    UserError: Outputs are too large for this type.
  """
  split, config, views = replica.data.train, replica.config, training.fixed_views
  assert isinstance(split, Split)  # `config.settle` refuses views of a stream
  x, examples = standardised(teacher.scaling, np.asarray(split.x)), split.examples
  key = key_of_views(keys_of_seed(seed_of(replica, 'student'))[1])
  compiled = _predicting(teacher.network, x.shape[1:], training.augment, training.augment_share)
  predict = functools.partial(compiled, teacher.params, teacher.model_state, teacher.scaling, key)
  kept: np.memmap | None = None
  with bar(f'teacher predictions on {views} views', views, examples, 'inputs') as advance:
    for view in range(views):
      rows = view * examples + np.arange(examples, dtype=np.int32)
      outputs = as_kept(in_batches(predict, config.evaluation.batch_size, x, rows, axis=1), config.teacher.keep_as)
      if kept is None:
        shape = (len(outputs), views * examples, outputs.shape[-1])
        kept = np.lib.format.open_memmap(file, 'w+', config.teacher.keep_as, shape)
      kept[:, view * examples : (view + 1) * examples] = outputs
      advance(view + 1)
  assert kept is not None
  kept.flush()


@functools.lru_cache(maxsize=16)
def _predicting(network: Network, shape: tuple[int, ...], names: tuple[str, ...], share: float) -> Callable:
  """Compiled `(params, model_state, scaling, key, x [B, …], rows [B]) -> outputs [M, B, C]`."""
  change = augment.build(names, 1 + len(shape), share)

  def f(params, state, scaling, key, x, rows):
    batch = change(key, {'x': scale_inputs(scaling, x), 'view': rows}, None)
    return network.apply(params, state, batch['x'])[0]

  return jax.jit(f, compiler_options=options_of(network, shape))
