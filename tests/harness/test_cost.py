"""FLOPs of stages, and the plan that is made of them."""

import io
import shlex

import pytest
import torch
from rich.console import Console
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from encoder.runtime.config import ROOT
from harness.command_line import make_plans
from harness.config import parse
from harness.running import cost
from harness.running.plan import print_plan
from harness.running.stages import Graph
from llava_bridge.config import LlamaShape
from rae_bridge.decoder import PixelDecoder
from rae_bridge.dit import build_dit
from rae_bridge.shapes import DecoderConfig, DiTConfig


def counted(model, *inputs):
    """Forward FLOPs by torch's own counter."""
    math = sdpa_kernel(SDPBackend.MATH)  # the counter does not see the CPU's fused attention
    with math, FlopCounterMode(display=False) as counter, torch.no_grad():
        model(*inputs)
    return counter.get_total_flops()


@pytest.fixture
def plan_of(tmp_path):
    """The graph of the words, and its plan as printed."""

    def plan(*words):
        options, preset = parse([f"runs_dir={tmp_path}/runs", *words])
        graph, console = Graph(options.runs_dir), Console(record=True, width=200, file=io.StringIO())
        make_plans(graph, options, preset)
        print_plan(graph, preset, options, console)
        return graph, console.export_text()

    return plan


@pytest.mark.parametrize(
    "sizes", [((48, 96), (3, 2), (2, 4)), ((64, 64), (2, 1), (2, 2)), ((48,), (3,), (2,))]
)
def test_a_dits_flops_are_torchs(sizes):
    width, depth, heads = sizes
    config = DiTConfig(
        hidden_size=width, depth=depth, num_heads=heads, input_size=8, in_channels=24, num_classes=4
    )
    x_t, t, y = torch.randn(1, 24, 8, 8), torch.tensor([0.5]), torch.tensor([1])
    expected = counted(build_dit(config).eval(), x_t, t, y)
    embeddings = 2 * (512 * width[0] + width[0] ** 2)  # of the time: not counted by us
    assert cost.dit_flops(config, 64, 24) == pytest.approx(expected - embeddings, rel=1e-3)


def test_a_pixel_decoders_flops_are_torchs():
    config = DecoderConfig(
        decoder_hidden_size=48, decoder_num_hidden_layers=2, decoder_num_attention_heads=2,
        decoder_intermediate_size=96, hidden_size=24, image_size=64,
    )  # fmt: skip
    expected = counted(PixelDecoder(config).eval(), torch.randn(1, 16, 24))
    assert cost.pixel_decoder_flops(config, 16, 24) == pytest.approx(expected, rel=0.1)  # a class token more


def test_a_llamas_flops_are_torchs():
    from llava_bridge.demo_llm.tokenizer import build_tokenizer
    from llava_bridge.demo_llm.train_llm import build_llama

    shape = LlamaShape(width=48, depth=2, num_heads=2, mlp_width=96)
    tokenizer = build_tokenizer(["a", "b"])
    model = build_llama(shape, tokenizer, "sdpa").eval()
    expected = counted(model, torch.zeros(1, 32, dtype=torch.long)) - 2 * 32 * 48 * len(tokenizer)
    assert cost.llama_flops(shape, 32) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("stage", "template"), [(1, "plain"), (2, "vicuna_v1")])
def test_the_texts_of_llavas_stages_are_as_long_as_counted(stage, template):
    from encoder.data.scenes.compose import make_scene
    from encoder.data.scenes.conversations import instruct_record, pretrain_record
    from encoder.data.scenes.text import VOCABULARY
    from llava_bridge.demo_llm.tokenizer import build_tokenizer
    from llava_bridge.prompt import IMAGE, encode_conversations

    tokenizer = build_tokenizer(VOCABULARY)
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]})
    scenes = [make_scene(3, i, "train") for i in range(200)]
    records = [
        pretrain_record(scene, "x", "x.png") if stage == 1 else instruct_record(scene, f"{i}", "x.png", 3)
        for i, scene in enumerate(scenes)
    ]
    encoded = encode_conversations(records, template, tokenizer, num_image_tokens=1, max_length=512)
    mean = sum(len(each.input_ids) - 1 for each in encoded) / len(encoded)
    assert cost.STAGE_TEXT[stage] == pytest.approx(mean, rel=0.03)


def test_the_plan_of_small_is_calculated_says_so_and_fits_the_budgets(plan_of):
    graph, text = plan_of("preset=small")
    assert "calculated, not measured: each stage's FLOPs at 237 TFLOP/s a GPU" in text
    total = sum(map(cost.stage_flops, graph))
    assert 10 * 60 < total / 237e12 < 18 * 60
    assert total / 50e12 < 4 * 3600
    computing = {stage.module for stage in graph if cost.stage_flops(stage)}
    assert {"encoder.train", "llava_bridge.train", "rae_bridge.train", "rae_bridge.generate"} <= computing


def test_seeds_and_steps_scale_the_flops_of_what_depends_on_them(plan_of):
    def flops(graph, module):
        return sum(cost.stage_flops(stage) for stage in graph if stage.module == module)

    once, _ = plan_of("preset=small", "rae.train.num_steps=1000")
    more, _ = plan_of("preset=small", "rae.train.num_steps=2000", "seeds=[0,1]")
    assert flops(more, "rae_bridge.train") == pytest.approx(4 * flops(once, "rae_bridge.train"))
    assert flops(more, "encoder.train") == flops(once, "encoder.train")


def test_the_ablations_are_counted_too(plan_of):
    graph, _ = plan_of("preset=small", "suite=ablation")
    studies = [
        stage for stage in graph if stage.module == "encoder.train" and "foundation" not in stage.label
    ]
    assert all(cost.stage_flops(stage) > 2000 * 256 * 10e9 for stage in studies)


@pytest.mark.parametrize(
    "words",
    [
        ["preset=small", "encoders=[clip-demo]"],
        ["preset=small", "encoders=[module:examples.own_encoder:PatchColours]"],
        ["preset=demo", "assumed_flops=1e12"],
    ],
)
def test_what_the_preset_does_not_make_is_left_out_by_name(plan_of, words):
    graph, text = plan_of(*words)
    unknown = [stage for stage in graph if cost.stage_flops(stage) is None]
    assert {"rae_bridge.train", "rae_bridge.generate"} <= {stage.module for stage in unknown}
    assert f"without the FLOPs of {len(unknown)} stages whose weights or pictures" in text


def test_ones_own_pictures_are_not_taken_for_those_that_the_encoder_was_trained_on(plan_of, tmp_path):
    for name in ("a", "b"):
        (tmp_path / "mine" / name).mkdir(parents=True)
        (tmp_path / "mine" / name / "0.png").touch()
    graph, _ = plan_of("preset=small", f"own_data.source={tmp_path / 'mine'}")
    flops = {stage.label: cost.stage_flops(stage) for stage in graph}
    assert flops["ov3-small: tokens of train pictures"] is flops["ov3-small: LLaVA stage 2"] is None
    assert flops["foundation: ov3-small: train at 256 px"] > 0 and flops["ov3-small: train the DiT"] > 0


def test_nothing_is_calculated_for_what_was_timed(plan_of):
    _, text = plan_of("preset=demo")
    assert "calculated" not in text


def test_the_documented_rehearsal_is_the_whole_path():
    blocks = (ROOT / "docs" / "cluster.md").read_text().split("```\n")
    (words,) = (shlex.split(block.replace("\\\n", " ")) for block in blocks if "foundation.phases=[" in block)
    options, preset = parse(words[2:])
    graph = Graph(options.runs_dir)
    make_plans(graph, options, preset)
    whole = Graph(options.runs_dir)
    make_plans(whole, *parse(["preset=small"]))
    assert [stage.label for stage in graph] == [stage.label for stage in whole]
