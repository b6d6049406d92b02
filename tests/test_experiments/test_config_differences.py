"""Which settings methods have in common and in which they differ."""

from mmaction_mbcd.experiments.config_differences import Differences, flatten


def test_keys_are_dotted_and_lists_of_parts_have_indices():
    config = {"lr": 0.1, "area": [0.5, 1.0], "steps": [{"type": "A"}, [1, 2]], "e": {}}
    assert dict(flatten(config)) == {
        "lr": "0.1",
        "area": "[0.5, 1.0]",
        "steps.0.type": '"A"',
        "steps.1": "[1, 2]",
        "e": "{}",
    }


def test_common_differing_and_by_run():
    def config(target, **others):
        return dict(target=target, lr=0.1, **others)

    found = Differences.between(
        {
            "ERM": [config("a", loss=1), config("b", loss=1)],
            # Of this method the run to b is missing.
            "MBCD": [config("a", loss=2, teacher=True)],
        }
    )
    assert found.methods == ["ERM", "MBCD"]
    assert found.common == {"lr": "0.1"}
    assert found.differing == {"loss": ["1", "2"], "teacher": ["–", "true"]}
    assert found.by_run == {"target": ['"a"', '"b"']}
