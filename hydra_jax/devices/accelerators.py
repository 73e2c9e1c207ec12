"""What makers say of their accelerators: peak rates, memory, and how fast a chip sends to others.

Numbers are published ones, of one chip: nothing was measured here. Rates of NVIDIA are without sparsity, which is half
of what its pages print. Bandwidths of links are those of one direction, half of what is called bidirectional. Google's
pages were read in November 2026. NVIDIA's numbers are those of the data sheets named, by copies of them; the ports of
DGX machines are from memory.
"""

from dataclasses import dataclass

from hydra_jax.errors import UserError


@dataclass(frozen=True)
class Accelerator:
  """A row of `ACCELERATORS`.

  Attributes:
    platform: What XLA compiles for, `tpu` or `cuda`.
    bfloat16: Peak of matrix products, FLOP/s.
    float32: The same, as JAX computes float32 by default: in one pass of bfloat16 on a TPU, in TF32 on a GPU.
    memory: Bytes of its memory.
    memory_rate: Bytes it reads or writes in a second.
    link_rate: Bytes it sends in a second to other chips of its group.
    group: Number of chips that such links connect.
    network_rate: Bytes it sends in a second to chips outside of its group; 0: a program cannot leave the group.
  """

  platform: str
  bfloat16: float
  float32: float
  memory: float
  memory_rate: float
  link_rate: float
  group: int
  network_rate: float = 0.0

  def rate_among(self, devices: int) -> float:
    """Bytes a second that a chip sends in a collective of some devices."""
    return self.link_rate if devices <= self.group else self.network_rate


TERA, GIGA = 1e12, 1e9

ACCELERATORS = {
  # https://docs.cloud.google.com/tpu/docs/v4: 275 teraflops, 32 GiB, 1200 GB/s, 4096 chips with 1.1 PB/s of all-reduce.
  'tpu-v4': Accelerator('tpu', 275 * TERA, 275 * TERA, 32 * 2**30, 1200 * GIGA, 1.1e15 / 4096, 4096),
  # https://docs.cloud.google.com/tpu/docs/v5e: 197 teraflops, 16 GB, 819 GB/s, 400 GB/s bidirectional, 256 chips.
  'tpu-v5e': Accelerator('tpu', 197 * TERA, 197 * TERA, 16 * GIGA, 819 * GIGA, 200 * GIGA, 256),
  # https://docs.cloud.google.com/tpu/docs/v5p: 459 teraflops, 95 GB, 2765 GB/s, 4800 Gbit/s, 8960 chips; a job has up
  # to 6144 of them.
  'tpu-v5p': Accelerator('tpu', 459 * TERA, 459 * TERA, 95 * GIGA, 2765 * GIGA, 600 * GIGA, 6144),
  # https://docs.cloud.google.com/tpu/docs/v6e: 918 teraflops, 32 GB, 1638 GB/s, 800 GB/s bidirectional, 256 chips.
  'tpu-v6e': Accelerator('tpu', 918 * TERA, 918 * TERA, 32 * GIGA, 1638 * GIGA, 400 * GIGA, 256),
  # NVIDIA A100 data sheet (80 GB SXM): 312 and 156 teraflops, 80 GB, 2039 GB/s, NVLink 600 GB/s. DGX A100 data sheet:
  # eight of them, with a port of 200 Gbit/s each.
  'a100': Accelerator('cuda', 312 * TERA, 156 * TERA, 80 * GIGA, 2039 * GIGA, 300 * GIGA, 8, 25 * GIGA),
  # NVIDIA H100 data sheet (SXM): 1979 and 989 teraflops with sparsity, 80 GB, 3.35 TB/s, NVLink 900 GB/s. DGX H100 data
  # sheet: eight of them, with a port of 400 Gbit/s each.
  'h100': Accelerator('cuda', 989.5 * TERA, 494.5 * TERA, 80 * GIGA, 3350 * GIGA, 450 * GIGA, 8, 50 * GIGA),
  # NVIDIA H200 data sheet (SXM): rates and links of the H100, 141 GB, 4.8 TB/s.
  'h200': Accelerator('cuda', 989.5 * TERA, 494.5 * TERA, 141 * GIGA, 4800 * GIGA, 450 * GIGA, 8, 50 * GIGA),
}


def find(name: str, devices: int) -> Accelerator:
  """An accelerator by name, for a program on some devices.

  Raises:
    UserError: There is none of this name, or it does not connect this number of devices.

  Example:
    >>> find('h100', devices=64).rate_among(64)
    50000000000.0
  """
  if name not in ACCELERATORS:
    raise UserError(f'--platform={name} is not known: choose one of {", ".join(ACCELERATORS)}')
  found = ACCELERATORS[name]
  if devices > found.group and not found.network_rate:
    raise UserError(f'--devices={devices}: a program on {name} has at most {found.group} chips: set it to fewer')
  return found
