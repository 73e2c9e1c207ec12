"""Three spiral arms in the plane: what each method is uncertain about, as a picture.

    hydra-jax run --config=configs/spiral.py

Teachers: 20 MLPs of four layers of 100 units, 300 points. `figures/plane.png` shows total, data and
model uncertainty over the plane, to 2.5 times the reach of the data. Out-of-domain: points on rings
two to four times as far out as the data.

Networks of ReLUs are piecewise linear: far out they grow certain, except along a few rays, so all
methods score below 0.5 there by total uncertainty, and the ensemble least so.
"""

from hydra_jax.config import apply_argument, default_config


def get_config(argument=None):
  config = default_config()
  config.name = 'spiral'
  config.data.name = 'spiral'
  config.data.ood = ('far', 'plane')
  for role in ('teacher', 'student'):
    config.network[role].widths = (100, 100, 100, 100)
  config.training.update(epochs=200.0, batch_size=32)
  config.student.hydra.epochs = 300.0
  return apply_argument(config, argument)
