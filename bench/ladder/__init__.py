"""Three kernels from naive to production, in numbered steps that each run:

python -m bench ladder softmax | layer_norm | transpose [--device cuda] [--show 3]

A step is a file, <operation>/<device>_<number>_<name>, .py or .cu. Its header says the idea, what
it reads and writes, and why it is faster than the step before; how much faster is measured by the
command. To read them in their order is what they are for.
"""
