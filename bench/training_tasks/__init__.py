"""What `python -m bench training` can train: a file for each family, a line here for each name.

A family's file imports neither models nor torch at its top: each side imports its own.
"""

from bench.training_tasks.cnn import LeNetTask, ResNet18Task
from bench.training_tasks.gpt import GPTTask
from bench.training_tasks.mlp import MLPTask
from bench.training_tasks.rnn import CharLSTMTask
from bench.training_tasks.task import BadSetting, Task

__all__ = ["TASKS", "BadSetting", "Task"]

#: What --model chooses from; --set changes a task's fields.
TASKS: dict[str, Task] = {
    "mlp": MLPTask(),
    "lenet": LeNetTask(),
    "resnet18": ResNet18Task(),
    "charlstm": CharLSTMTask(),
    "gpt": GPTTask(),
}
