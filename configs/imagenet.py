"""ImageNet with ResNet-50: four teachers, and students of the same size.

    hydra-jax run --config=configs/imagenet.py --data_dir=DIR

This fits no small machine, and has not been run on ImageNet: all of it but the size was verified on a
generated miniature in the same format. It needs

* an accelerator with room for the activations of four ResNet-50 at a batch of 256, and days;
* 170 GB for the prepared set, and as much to make it: by its terms you fetch ILSVRC2012_img_train.tar and
  ILSVRC2012_img_val.tar yourself, put them in DIR/downloads/manual, and run
  `hydra-jax prepare imagenet2012 --data_dir=DIR` (which needs TensorFlow; nothing after that does);
* processor cores: each decodes about 400 training images of 500 × 375 a second. The progress line says
  what share of the time the loop waits for them: near 0, the accelerator is kept busy;
* 7.5 GB in the user's cache for the decoded validation images, memory-mapped.

The training images stay on disk and are decoded, cropped at random and maybe mirrored whenever they are
shown, so a student's teacher predicts in the same step. SGD with Nesterov momentum, batches of 256, weight
decay 1e-4, 90 epochs, 5 of them warm-up to 0.1 (change it with the batch), then a cosine.
Computed in bfloat16 (`--config.network.teacher.dtype=float32`, and `student` likewise, change it).
Hydra's heads are the last block and the dense layer.
"""

from hydra_jax.config import apply_argument, default_config, residual_recipe, update_training

RESNET50 = dict(name='resnet50', norm='batch', dtype='bfloat16')


def get_config(argument=None):
  config = default_config()
  config.name = 'imagenet'
  config.data.name = 'imagenet2012'
  config.data.test = 'validation'
  config.data.ood = ('noise',)
  config.teacher.members = 4
  residual_recipe(config, RESNET50, RESNET50, epochs=90.0, hydra_epochs=135.0, weight_decay=1e-4, augment=())
  update_training(config, batch_size=256)
  config.evaluation.batch_size = 100
  config.checkpoint_seconds = 600.0
  return apply_argument(config, argument)
