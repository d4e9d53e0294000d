"""The training loop: make a step, write its metrics, and do what is due.

The metric line of step `s` describes one state, the weights after `s` updates: validation, tasks,
and the training loss of update `s` before it changes them.
"""

from storage.records.run_records import State
from train.checks import check, check_before_last_save
from train.evaluation import evaluate, evaluation_due
from train.profile_steps import ProfiledSteps
from train.run import Run
from train.saving import add_results, save, save_and_wait, save_due
from train.schedule import learning_rate


def train(run: Run) -> State:
    """Train to the last step, or to a stop on which all ranks agreed; returns which it was."""
    config, learner, progress = run.config, run.learner, run.progress
    span = config.profile if run.ranks.is_main else None
    profiled = ProfiledSteps(span, config.out, run.ranks.device)
    run.recheck.start()
    progress.clock.start()
    while not progress.stop_agreed:
        check(run)
        if evaluation_due(run):
            with run.aside():
                if save_due(run):  # first: an evaluation may be long, and may be killed
                    save(run)
                evaluate(run)
                add_results(run)
            continue  # the ranks may have agreed to stop meanwhile
        if run.step >= run.steps or run.stopped_improving:
            break
        run.saver.log_failure()
        if save_due(run):
            with run.aside():
                save(run)

        profiled.before(run.step)
        step, extra = run.step, run.take_extra()  # what was just measured belongs to this line
        batch = run.loader.next_step()
        lr = learning_rate(step, run.steps, config.optimizer.lr, config.schedule)
        run.heartbeat()
        values = learner.step(batch, lr, run.stop.wanted, progress.guard.limits(step))
        run.advance(batch)
        run.write_line()  # of the step before, while this one runs
        progress.launched(step, lr, batch.first_window, run.tokens, values, extra)

    if not run.folder.lost:
        profiled.close()
    run.write_line()
    check_before_last_save(run)
    if progress.stop_agreed:
        save_and_wait(run)
        return "preempted"
    run.write_last_line()
    save_and_wait(run)
    return "finished"
