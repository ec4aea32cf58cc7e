"""Training a classifier: the one to unlearn from, and the one retrained without.

`log` of `fit` is where trackers are attached. For Weights & Biases it is `log` of the
run that `wandb.init()` returns; for TensorBoard, with the `SummaryWriter` of
tensorboardX or torch:

>>> def log_to(writer):
...     def log(record):
...         for name in record.keys() - {"step", "epoch"}:
...             writer.add_scalar(name, record[name], record["step"])
...
...     return log
>>> from types import SimpleNamespace
>>> log = log_to(SimpleNamespace(add_scalar=print))  # SummaryWriter("runs/events")
>>> log({"step": 3, "epoch": 0, "loss": 0.25})  # by fit(..., log=log), for every step
loss 0.25 3
"""

from jaxunlearn.training.fitting import fit as fit
from jaxunlearn.training.recipe import Recipe as Recipe
