"""Small results files, as `python -m bench` writes them."""

from bench import machine

FACTS = {
    "format": machine.FORMAT,
    "device": "cpu",
    "date": "2026-01-02T03:04:05+00:00",
    "cpu": "Some CPU",
    "cores": 2,
    "threads": 2,
    "features": ["avx2"],
    "load": 0.1,
    "versions": {"numpy": "2.0", "torch": "2.9"},
    "commit": "0123456789abcdef",
}


def spread(median, width=0.01):
    """A median with p20 and p80 `width` of it beside."""
    return {"median": median, "p20": median * (1 - width), "p80": median * (1 + width)}


def kernel_row(kernel, shape, seconds=1e-4, torch=2e-4, variant="_", **other):
    """A row of a kernel and torch."""
    nbytes = 8 * shape[0] * shape[-1]
    return {
        "kernel": kernel,
        "variant": variant,
        "shape": list(shape),
        "dtype": "float32",
        "sides": {
            "ours": {"version": "tuned", "error": 1e-7, "bytes": nbytes},
            "torch": {"peer": f"F.{kernel}", "error": 1e-7},
        },
        "problem": None,
        "seconds": {"ours": spread(seconds), "torch": spread(torch)},
        "speedup": {"torch": spread(torch / seconds)},
        "best_seconds": {"ours": 0.98 * seconds, "torch": 0.98 * torch},
        "bandwidth": nbytes / seconds,
        "share_of_copy": nbytes / seconds / 1e10,
        "flops": None,
        "disturbed": False,
    } | other


KERNELS = FACTS | {
    "kind": "kernels",
    "copy_bandwidth": 1e10,
    "rows": [
        kernel_row("softmax", (768, 65)),
        kernel_row("gelu", (4096, 1024), 1e-3, 8e-4),
        kernel_row("softmax", (4096, 1024), 1e-3, 5e-3),
        kernel_row("matmul", (128, 256, 64), 1e-4, 9e-5, flops=2 * 128 * 256 * 64 / 1e-4),
    ],
}

TRAINING = FACTS | {
    "kind": "training",
    "results": [
        {
            "model": "mlp",
            "title": "MLP 784-10",
            "batch": 128,
            "dtype": "float32",
            "seconds": {
                "ours": {"step": spread(3e-3), "forward": spread(1e-3), "backward": spread(1e-3)},
                "torch": {"step": spread(4e-3), "forward": spread(2e-3), "backward": spread(1e-3)},
            },
            "best_seconds": {"ours": 2.9e-3, "torch": 3.9e-3},
            "speedup": {"torch": spread(4 / 3)},
            "disturbed": False,
        }
    ],
}
