"""The training loop: step, metrics, and what is due. One line a step means one state a line.

The line of step `s` holds everything measured on the weights after `s` updates: validation, tasks,
and the training loss of update `s` before it changes them.
"""

from storage.run_folder import State
from train.duties import evaluate, evaluation_due, save, save_due
from train.run import Run
from train.schedule import learning_rate
from train.step import train_step


def train(run: Run) -> State:
    """Train to the last step, or to a stop that all ranks agreed on; says which it was."""
    config = run.config
    run.progress.start_clock()
    while not run.progress.stop_agreed:
        if evaluation_due(run):
            run.report()
            with run.progress.paused():
                evaluate(run)
        if run.step == run.steps:
            break
        if save_due(run):
            run.report()
            with run.progress.paused():
                save(run)

        batch = run.loader.next_step()
        lr = learning_rate(run.step, run.steps, config.optimizer.lr, config.schedule)
        values = train_step(run, batch, lr, run.stop.wanted)
        run.report()  # the step before, while this one runs
        run.progress.launched(run.step, lr, batch.first_window, values, run.fresh_results)
        run.step += 1

    run.report()
    if run.progress.stop_agreed:
        save(run)
        return "preempted"
    run.metrics.write(run.step, {"tokens": run.step * run.plan.tokens, **run.fresh_results})
    save(run)
    return "finished"
