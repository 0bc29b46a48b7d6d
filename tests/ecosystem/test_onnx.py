"""Both ONNX exporters write the unmerged adapter with the base model."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.tuners.lora2.lora2_models import adapt, batch, randomize

pytestmark = pytest.mark.ecosystem


class Logits(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, ids):
        return self.model(input_ids=ids).logits


@pytest.mark.parametrize("dynamo", [False, True])
def test_onnx_gives_the_same_logits(dynamo, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    model = Logits(randomize(adapt("bert")).eval())
    ids = batch()["input_ids"]
    expected = model(ids).detach().numpy()
    file = tmp_path / "model.onnx"
    with torch.no_grad():
        torch.onnx.export(model, (ids,), str(file), input_names=["ids"], dynamo=dynamo)
    session = onnxruntime.InferenceSession(str(file))
    (found,) = session.run(None, {session.get_inputs()[0].name: ids.numpy()})
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
