"""The cross-entropies that every method starts from."""

import pytest

from helpers.objectives import (
    build,
    ce,
    close,
    outputs_of,
    rows_of,
    step,
    sweep,
    valid_rows,
)


@sweep
@pytest.mark.parametrize("probe", [False, True])
def test_classification(names, absent, count, probe):
    outputs = outputs_of(names, count, absent)
    outputs.probe = probe
    objective = build("ClassificationObjective", names, weight=0.5, unimodal_weight=3.0)
    losses = step(objective, outputs)
    labels, valid = outputs.labels, valid_rows(outputs)
    close(losses["loss_fused"], 0.5 * ce(outputs.fused_logits, labels, valid))
    for m in names:
        expected = ce(outputs.unimodal_logits[m], labels, rows_of(outputs, m))
        name, factor = (f"loss_probe_{m}", 1) if probe else (f"loss_{m}", 3)
        close(losses[name], factor * expected)
    assert len(losses) == 1 + len(names)
