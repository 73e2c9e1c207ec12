"""Examples in docstrings do what is said below them."""

import doctest
import importlib
import pkgutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hydra_jax

MODULES = ['hydra_jax', *(module.name for module in pkgutil.walk_packages(hydra_jax.__path__, 'hydra_jax.'))]


@pytest.mark.parametrize('name', [name for name in MODULES if name != 'hydra_jax.cli'])
def test_examples_in_docstrings(name):
  names = {'hydra_jax': hydra_jax, 'jax': jax, 'jnp': jnp, 'np': np}
  found = doctest.testmod(importlib.import_module(name), extraglobs=names, optionflags=doctest.ELLIPSIS)
  assert not found.failed
