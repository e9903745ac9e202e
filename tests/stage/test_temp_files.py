"""What a killed run was writing is gone once the next one of its name goes on, and only that."""

from engine.options import Output
from engine.stage import resume


def test_half_written_files_of_a_killed_run_are_removed_and_those_of_others_are_not(tmp_path):
    own = ["a.pth.tmp-1234", "a.json.tmp-0f", "a.metrics.jsonl.tmp-0f", "a.state/00000003.tmp/run.pt"]
    others = ["a.b.pth.tmp-1", "b.pth.tmp-1", "a.pth", "a.pth.tmp", "a.state/00000002/run.pt", "aXpth.tmp-1", "A.txt"]
    for name in own + others:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    output = Output(name="a", save_dir=str(tmp_path), resume="auto")
    resume.Start(output, None, "run", 1, resume.ResumePoint(tmp_path / "elsewhere/00000002", None)).clear()
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()} == set(others)
