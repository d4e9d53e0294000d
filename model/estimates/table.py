"""The report of model/cost.py as a table for a person."""

from collections.abc import Sequence
from typing import Any

from model.estimates.flops import GPUS
from storage.terminal.short_times import short_time

_GIB = 2**30
_Row = tuple[str, str, str]
_WIDTHS = (32, 22, 24)
_GPU_WIDTHS = (16, 18, 14, 9)
_BLOCK_WIDTHS = (22, 14, 10, 19, 9)
_CONTEXT_WIDTHS = (22, 20, 8, 20, 8)


def format_report(report: dict[str, Any]) -> str:
    """The report as text: shape, parameters, FLOPs, memory, time, disk and money."""
    sections = (_shape, _parameters, _block, _flops, _context, _memory, _time, _disk)
    return "\n\n".join(filter(None, (section(report) for section in sections)))


def format_gpus() -> str:
    """The known GPUs with their peaks and memory, a line each."""
    rows = [("GPU", "bfloat16 TFLOP/s", "TF32 TFLOP/s", "memory")]
    rows += [
        (name, f"{gpu.bfloat16 / 1e12:,.0f}", f"{gpu.tf32 / 1e12:,.0f}", _memory_of(name))
        for name, gpu in GPUS.items()
    ]
    return "\n".join(_columns(row, _GPU_WIDTHS) for row in rows)


def gpus_in_words() -> str:
    """The same in one sentence, without TF32."""
    return ", ".join(
        f"{name} ({gpu.bfloat16 / 1e12:,.0f} TFLOP/s, {_memory_of(name)})"
        for name, gpu in GPUS.items()
    )


def _memory_of(name: str) -> str:
    return f"{GPUS[name].memory_bytes / 1e9:.0f} GB"


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
         f"padded to {s['padded_vocab_size']:,}"),
        *(
            (text, f"{published[key]:,}", f"{padded[key]:,}")
            for key, text in names.items()
            if padded[key] or key not in ("embedding_norm", "shortcuts")
        ),
        ("  attention of one block", f"{counts['one_attention_layer']:,}", ""),
    ]  # fmt: skip
    return _lines(rows)


def _block(report: dict[str, Any]) -> str:
    """One block: what each part has, and its share of a forward pass."""
    blocks, shares = report["shape"]["n_layer"], report["forward_flops_shares"]
    rows: list[Sequence[str]] = [
        (f"one block of {blocks}", "weights", "biases", "FLOPs of a window", "of all")
    ]
    parts = report["one_block"]
    for name, part in parts.items():
        share = f"{shares[name] / blocks:.2%}" if name in shares else ""
        rows.append((f"  {name}", *(f"{part[key]:,}" for key in part), share))
    sums = [f"{sum(part[key] for part in parts.values()):,}" for key in ("weights", "biases")]
    flops = sum(part["forward_flops"] for part in parts.values())
    share = f"{(1 - shares['head']) / blocks:.2%}"
    rows.append(("  all", *sums, f"{flops:,}", share))
    return "\n".join(_columns(row, _BLOCK_WIDTHS) for row in rows)


def _context(report: dict[str, Any]) -> str:
    """FLOPs and shares at the shape's own context length and at this one; empty if it is that."""
    found = report["context_comparison"]
    if found is None:
        return ""
    heads = [cell for T in found["context_lengths"] for cell in (f"T = {T:,}", "of all")]
    rows: list[Sequence[str]] = [("forward FLOPs, published", *heads)]
    for part in found["forward_flops"][0]:
        pairs = zip(found["forward_flops"], found["shares"], strict=True)
        cells = [
            cell for flops, share in pairs for cell in (f"{flops[part]:,}", f"{share[part]:.1%}")
        ]
        rows.append((f"  {part}", *cells))
    totals = [cell for flops in found["forward_flops"] for cell in (f"{sum(flops.values()):,}", "")]
    rows.append(("  all", *totals))
    ratio = f"{found['ratio']:.2f} times a window, {found['ratio_per_token']:.2f} times a token"
    return "\n".join([*(_columns(row, _CONTEXT_WIDTHS) for row in rows), f"  ratio: {ratio}"])


def _flops(report: dict[str, Any]) -> str:
    flops = report["forward_flops_per_window"]
    published, padded = flops["published"], flops["padded"]
    rows = [("forward FLOPs of a window", "published (shares)", "trained (padded)")]
    shares = report["forward_flops_shares"]
    rows += [
        (f"{part}, {shares[part]:.1%}", f"{published[part]:,}", f"{padded[part]:,}")
        for part in padded
    ]
    rows.append(("all", f"{sum(published.values()):,}", f"{sum(padded.values()):,}"))
    rows.append(("training FLOPs of a token", "", "trained (padded)"))
    conventions = report["training_flops_per_token"]
    rows += [("  " + name, "", f"{value:,.0f}") for name, value in conventions.items()]
    if documents := report["documents"]:
        attended = [f"{documents[key]:,.1f}" for key in ("attended_without", "attended_tokens")]
        rows += [
            (
                "  within documents, causal-exact",
                "",
                f"{documents['training_flops_per_token']:,.0f}",
            ),
            ("tokens that a token attends to", f"without documents {attended[0]}", attended[1]),
        ]
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
        "buckets": "exchange of gradients",
        "partial_sums": "partial sums of gradients",
        "weight_copies": "weights cast for matrix products",
        "layer": "activations of one block",
        "layers": f"activations of {n_layer} blocks",
        "layers_computed_again": "  if blocks were recomputed",
        "documents": "mask within documents",
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
    rows += [
        (text, _gib(compiled[key]), _gib(plain[key]))
        for key, text in names.items()
        if compiled[key] or plain[key] or key not in ("partial_sums", "documents")
    ]
    rows.append(("reached at", compiled["peak_moment"], plain["peak_moment"]))
    usable = f"largest that fits {micro['usable_bytes'] / _GIB:.1f} GiB"
    largest = {how: str(count or "none") for how, count in micro["largest"].items()}
    rows.append((usable, largest["compiled"], largest["not_compiled"]))
    rows.append(("host memory while saving", _gib(compiled["host_copy"]), _gib(plain["host_copy"])))
    return _lines(rows)


def _time(report: dict[str, Any]) -> str:
    t = report["time"]
    micro = report["micro_batch"]
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
        ("micro-steps of a step", f"{micro['accumulation_steps']:,}",
         f"of {micro['taken']} x {report['shape']['context_length']:,} tokens"),
        ("time of all steps", short_time(3600 * t["hours"]), "estimated, as the speed"),
        ("GPU-hours", f"{t['gpu_hours']:,.1f}", ""),
    ]  # fmt: skip
    how = "compiled" if report["step"]["compile"] == "on" else "not_compiled"
    if micro["largest"][how] is None:
        usable = f"{micro['usable_bytes'] / _GIB:.1f} GiB"
        rows.insert(1, ("no window fits such a GPU", f"{usable} usable", "if it fitted:"))
    return _lines(rows)


def _disk(report: dict[str, Any]) -> str:
    disk, money = report["disk_bytes"], report["money"]
    rows = [
        ("GB on the disk", "", ""),
        ("a checkpoint", _gigabytes(disk["checkpoint"]), ""),
        (f"{disk['kept']} kept, one being written", _gigabytes(disk["checkpoints"]), ""),
        ("token shards", _gigabytes(disk["data"]), "each token read once"),
        ("source files meanwhile", _gigabytes(disk["source"]), "FineWeb-Edu"),
        ("all at their most", _gigabytes(disk["total"]), ""),
    ]
    table = _lines(rows)
    if money["total"] is None:
        return table
    price = f"at {money['price_of_gpu_hour']:g} a GPU-hour"
    total = _lines([("money, estimated", "", ""), (price, f"{money['total']:,.2f}", "")])
    return f"{table}\n\n{total}"


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:,.2f}"


def _gib(count: int) -> str:
    return f"{count / _GIB:.3f}"


def _lines(rows: list[_Row]) -> str:
    """The rows in columns; the first row is the heading."""
    first, *others = rows
    table = [first, *(("  " + text, a, b) for text, a, b in others)]
    return "\n".join(_columns(row, _WIDTHS) for row in table)


def _columns(row: Sequence[str], widths: Sequence[int]) -> str:
    """A line of cells: the first to the left, the others to the right, at least a space apart."""
    (name, *cells), (first, *others) = row, widths
    right = (f" {cell:>{width - 1}}" for cell, width in zip(cells, others, strict=True))
    return f"{name:<{first}}{''.join(right)}".rstrip()
