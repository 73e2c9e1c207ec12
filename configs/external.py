"""Members made elsewhere, by any framework, that come as their predictions in one file.

    hydra-jax run --config=configs/external.py --config.teacher.predictions=FILE.npz
    hydra-jax run --config=configs/external.py:mnist --config.teacher.predictions=FILE.npy

FILE.npz holds inputs and labels, `x`, `y`, `x_test`, `y_test`, and the members' predictions for them, `logits` or
`probabilities` [members, examples, classes], or in regression `mean` and `variance` (or `std`) [members, examples,
targets] in the units of `y`, each also with `_test`. Further inputs `x_NAME`, with or without predictions, are
out-of-domain sets for `--config.data.ood="('NAME',)"`. FILE.npy holds predictions for the training split of a known
data set, in its order. Where the file has no predictions for an evaluation set, the ensemble's row of the table is
empty there.
"""

from hydra_jax.config import apply_argument, default_config, split_argument


def get_config(argument=None):
  known = [word for word in split_argument(argument)[:1] if '=' not in word]
  config = default_config()
  config.name = 'external'
  config.teacher.predictions = 'predictions.npz'
  config.data.name = config.teacher.get_oneway_ref('predictions')
  if known:
    config.data.name = known[0]
  config.distillation.epochs = 60.0
  config.student.hydra.epochs = 120.0
  return apply_argument(config, argument, words=known)
