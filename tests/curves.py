"""Curves as TensorBoard itself reads them from its event files."""

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def scalars(folder, tag):
    """Step and value of each point of a curve, in TensorBoard's order."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]
