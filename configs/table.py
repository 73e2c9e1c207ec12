"""A table of the user's own: a CSV or parquet file, or a data set of Hugging Face.

    hydra-jax run --config='configs/table.py:csv:houses.csv?target=price'
    hydra-jax run --config='configs/table.py:csv:houses.csv?target=price,members=10' --config.replicas=3
    hydra-jax run --config=configs/table.py --config.data.name='parquet:stays.parquet?target=days&drop=id,name&time=day'

A fifth of the rows are the test part, stratified by class, unless the options say otherwise (docs/settings.md).
What becomes of each column is shown before anything is trained. Where a comma stands in the options, the name is set
as in the last line. Teachers: 20 MLPs with one hidden layer of 50 units, which predict a class, or a mean and a
variance; students have 100 units. 500 rows take about a minute on two CPU cores. For 10,000 rows and more, take larger
networks and batches, and fewer passes: `--config.training.batch_size=256 --config.training.epochs=10`.
"""

from hydra_jax.config import apply_argument, default_config, split_argument


def get_config(argument=None):
  named = [part for part in split_argument(argument)[:1] if ':' in part.partition('=')[0]]
  config = default_config()
  config.name = 'table'
  config.data.name = named[0] if named else 'csv:table.csv?target=target'
  config.network.teacher.widths, config.network.student.widths = (50,), (100,)
  config.training.update(epochs=40.0, batch_size=32)
  config.distillation.epochs = 60.0
  config.student.hydra.epochs = 120.0
  return apply_argument(config, argument, words=named)
