"""The report of model/cost.py as a table for a person."""

from typing import Any

_GIB = 2**30
_Row = tuple[str, str, str]
_WIDTHS = (34, 24, 24)


def format_report(report: dict[str, Any]) -> str:
    """The report as text: shape, parameters, FLOPs, memory and time."""
    sections = (_shape, _parameters, _flops, _memory, _time)
    return "\n\n".join(section(report) for section in sections)


def _shape(report: dict[str, Any]) -> str:
    s = report["shape"]
    cap = s["logit_softcap"]
    more = {
        "norms without weights": not s["norm_weight"],
        "normalised embedding": s["embedding_norm"],
        "QK-norm": s["qk_norm"],
        f"soft-cap {cap}": cap is not None,
        "shortcuts": s["shortcuts"],
    }
    flags = ", ".join(
        (
            *(s["norm"], s["mlp"], s["position"], "biases" if s["bias"] else "no biases"),
            *(text for text, is_so in more.items() if is_so),
        )
    )
    return (
        f"{report['name']}: {s['n_layer']} layers, {s['n_head']} heads, {s['n_embd']:,} wide, "
        f"feed-forward {s['mlp_width'] or 4 * s['n_embd']:,}, T = {s['context_length']:,}, "
        f"{'tied' if s['tied'] else 'untied'} head\n({flags})"
    )


def _parameters(report: dict[str, Any]) -> str:
    s, counts = report["shape"], report["parameters"]
    padded, published = counts["padded"], counts["published"]
    names = {
        "token_embedding": "token embedding",
        "position_embedding": "position embedding",
        "blocks": f"{s['n_layer']} blocks",
        "final_norm": "final norm",
        "untied_head": "head, if not tied",
        "embedding_norm": "norm of the embedding",
        "shortcuts": "scales of shortcuts",
        "total": "all",
        "total_tied": "all, if the head were tied",
        "total_untied": "all, if the head were untied",
        "without_positions": "all except positions",
        "without_embeddings": "without embeddings and head",
    }
    rows = [
        ("parameters", f"published ({s['vocab_size']:,} ids)",
         f"trained (padded to {s['padded_vocab_size']:,})"),
        *(
            (text, f"{published[key]:,}", f"{padded[key]:,}")
            for key, text in names.items()
            if padded[key] or key not in ("embedding_norm", "shortcuts")
        ),
        ("  attention of one block", f"{counts['one_attention_layer']:,}", ""),
    ]  # fmt: skip
    return _lines(rows)


def _flops(report: dict[str, Any]) -> str:
    flops = report["forward_flops_per_window"]
    published, padded = flops["published"], flops["padded"]
    rows = [("forward FLOPs of a window", "published", "trained (padded)")]
    rows += [(part, f"{published[part]:,}", f"{padded[part]:,}") for part in padded]
    rows.append(("all", f"{sum(published.values()):,}", f"{sum(padded.values()):,}"))
    rows.append(("training FLOPs of a token", "", "trained (padded)"))
    conventions = report["training_flops_per_token"]
    rows += [("  " + name, "", f"{value:,.0f}") for name, value in conventions.items()]
    update = report["update"]
    if update["flops"]:
        share = f"{update['share_of_step_flops']:.2%} of a GPU's step"
        rows.append((f"FLOPs of an update by {update['optimizer']}", share, f"{update['flops']:,}"))
    return _lines(rows)


def _memory(report: dict[str, Any]) -> str:
    sizes, micro = report["memory_bytes"], report["micro_batch"]
    compiled, plain = sizes["compiled"], sizes["not_compiled"]
    n_layer = report["shape"]["n_layer"]
    names = {
        "weights": "weights, float32",
        "gradients": "gradients, float32",
        "optimizer": f"state of {report['update']['optimizer']}, float32",
        "buckets": "gradient buckets of DDP",
        "weight_copies": "weights cast for matrix products",
        "layer": "activations of one block",
        "layers": f"activations of {n_layer} blocks",
        "layers_computed_again": "  if blocks were recomputed",
        "final": "last norm and ids",
        "logits": "logits and loss",
        "update": "during the update only",
        "runtime": "runtime",
        "peak": "peak",
        "peak_computed_again": "  if blocks were recomputed",
    }
    dtype = report["step"]["dtype"]
    heading = f"GiB of a GPU, micro-batch {micro['taken']}"
    rows = [(heading, f"{dtype}, compiled", "not compiled")]
    rows += [(text, _gib(compiled[key]), _gib(plain[key])) for key, text in names.items()]
    rows.append(("reached at", compiled["peak_moment"], plain["peak_moment"]))
    usable = f"largest that fits {micro['usable_bytes'] / _GIB:.1f} GiB"
    largest = {how: str(count or "none") for how, count in micro["largest"].items()}
    rows.append((usable, largest["compiled"], largest["not_compiled"]))
    rows.append(("host memory while saving", _gib(compiled["host_copy"]), _gib(plain["host_copy"])))
    return _lines(rows)


def _time(report: dict[str, Any]) -> str:
    t = report["time"]
    gpus = f"{t['gpus']} x {t['gpu']}"
    causal = report["training_flops_per_token"]["causal-exact"]
    achieved = t["tokens_per_second"] * causal / (t["gpus"] * t["peak_flops"])
    rows = [
        (f"time on {gpus}, estimated", f"at {t['assumed_mfu']:.0%} MFU", ""),
        ("the same, causal-exact", f"{achieved:.1%}", ""),
        ("peak of a GPU, TFLOP/s", f"{t['peak_flops'] / 1e12:,.0f}", f"dense, {t['arithmetic']}"),
        ("tokens/s", f"{t['tokens_per_second']:,.0f}", ""),
        ("seconds a step", f"{t['step_seconds']:.3f}",
         f"of {report['step']['batch_tokens']:,} tokens"),
        ("steps", f"{t['steps']:,}", f"to {t['tokens']:,} tokens"),
        ("days", f"{t['days']:.2f}", ""),
        ("GPU-hours", f"{t['gpu_hours']:,.1f}", ""),
    ]  # fmt: skip
    return _lines(rows)


def _gib(count: int) -> str:
    return f"{count / _GIB:.3f}"


def _lines(rows: list[_Row]) -> str:
    """The rows in columns; the first row is the heading."""
    name, first, second = _WIDTHS
    (title, *heads), body = rows[0], rows[1:]
    table = [(title, *heads), *(("  " + text, a, b) for text, a, b in body)]
    return "\n".join(f"{t:<{name}}{a:>{first}}  {b:>{second}}".rstrip() for t, a, b in table)
