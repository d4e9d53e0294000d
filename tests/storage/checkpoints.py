"""A checkpoint folder with small files, for tests of what happens to the folder."""

from storage.checkpoint_folder import RESUME_FILES, write_manifest


def checkpoint(run, step, content="weights"):
    folder = run.checkpoint(step)
    folder.mkdir(parents=True)
    for name in ("model.json", *RESUME_FILES):
        (folder / name).write_text("{}")
    (folder / "model.safetensors").write_text(content)
    write_manifest(folder)
    return folder
