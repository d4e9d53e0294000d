"""A checkpoint folder with one small file, for tests of what happens to the folder."""

from storage.checkpoint_folder import write_manifest


def checkpoint(run, step, content="weights"):
    folder = run.checkpoint(step)
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_text(content)
    write_manifest(folder)
    return folder
