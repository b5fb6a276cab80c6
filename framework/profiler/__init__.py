"""Where the time of a model goes: `fw.profile`.

with fw.profile() as p:
    loss = criterion(model(x), y)
    loss.backward()
    optimizer.step()
print(p)                                # tables: layers, kernels, phases, memory
p.export("trace.json")                  # for ui.perfetto.dev or chrome://tracing
"""

from framework.profiler import spans
from framework.profiler.profile import Profile as Profile
from framework.profiler.spans import CATEGORIES as CATEGORIES, Span as Span


def is_recording() -> bool:
    """Does a profile record, in any thread?"""
    return bool(spans.recording)
