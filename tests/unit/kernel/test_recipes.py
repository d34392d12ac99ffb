"""Quantizations as they are written, and what is refused with which words."""

from typing import Any

import pytest

from espalier.errors import InvalidInput
from espalier.specs import QuantizeSpec, parse
from espalier.specs.recipes import KERNELS


def spec(**keys: Any) -> QuantizeSpec:
    return parse(QuantizeSpec, {"model": "team/base", "data": "team/text"} | keys)


def refusal(**keys: Any) -> str:
    with pytest.raises(InvalidInput) as caught:
        parse(QuantizeSpec, {"model": "team/base"} | keys)
    return caught.value.detail


def test_a_mode_has_its_own_bits_and_group() -> None:
    found = {mode: spec(q_mode=mode).recipe for mode in KERNELS}
    assert {mode: (r.q_bits, r.q_group_size) for mode, r in found.items()} == {
        "affine": (4, 64),
        "mxfp4": (4, 32),
        "nvfp4": (4, 16),
        "mxfp8": (8, 32),
    }
    assert spec(q_mode="affine", q_bits=None, q_group_size=32).recipe.label == "q4-g32"


def test_variants_are_words_or_mappings_and_inherit_the_jobs_keys() -> None:
    words = "4, 8 3:32 mxfp4, mixed_3_6 awq:4:64 float16 dynamic_quant:target_bpw=4.6 6:name=mine"
    made = spec(variants=words, q_group_size=128, dtype="bfloat16").recipes
    assert {name: (r.q_bits, r.q_group_size) for name, r in made} == {
        "q4-g128": (4, 128),
        "q8-g128": (8, 128),
        "q3-g32": (3, 32),
        "mxfp4": (4, 32),
        "mixed_3_6-g128": (4, 128),
        "awq-q4": (4, 64),
        "float16": (4, 128),
        "dynamic-4.6bpw": (4, 128),
        "mine": (6, 128),
    }
    assert {recipe.dtype for name, recipe in made if name != "float16"} == {"bfloat16"}
    mapped = spec(variants=[{"q_mode": "nvfp4"}, {"method": "gptq", "q_bits": 2}, 8])
    assert [name for name, _ in mapped.recipes] == ["nvfp4", "gptq-q2", "q8"]


def test_a_variant_of_another_method_has_no_mixed_recipe() -> None:
    made = dict(spec(quant_predicate="mixed_4_6", variants="awq, nvfp4, mixed_3_4").recipes)
    assert [recipe.quant_predicate for recipe in made.values()] == [None, None, "mixed_3_4"]


def test_what_is_stored_reads_back_as_the_same() -> None:
    first = spec(variants="4 mxfp8 dwq:q_bits=3", max_size="4GB")
    again = parse(QuantizeSpec, first.model_dump(mode="json"))
    assert again == first
    assert again.recipes == first.recipes
    assert again.size_limit == 4_000_000_000


def test_the_output_is_called_by_what_it_is() -> None:
    assert spec().label == "q4"
    assert spec(method="dwq", q_bits=3, q_group_size=32).label == "dwq-q3-g32"
    assert spec(method="none", dtype="float16").label == "float16"
    assert spec(variants="4 8").label == "quantized"


def test_only_what_had_a_say_is_told() -> None:
    assert spec().recipe.told() == {
        "method": "plain",
        "q_bits": 4,
        "q_group_size": 64,
        "q_mode": "affine",
    }
    told = spec(method="dwq").recipe.told()
    assert (told["num_samples"], told["sequence_length"]) == (2048, 1025)
    assert "n_grid" not in told
    assert spec(method="awq").recipe.told()["num_samples"] == 128


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"q_bits": 7}, "q_bits 7 has no kernel in MLX: use 2, 3, 4, 5, 6 or 8"),
        ({"q_group_size": 16}, "q_mode affine: use 32, 64 or 128"),
        ({"q_mode": "mxfp8", "q_bits": 4}, "q_bits 4 has no kernel in MLX for q_mode mxfp8: use 8"),
        ({"q_mode": "nvfp4", "q_group_size": 32}, "for q_mode nvfp4: use 16"),
        ({"q_mode": "mxfp4", "quant_predicate": "mixed_3_6"}, "method plain and q_mode affine"),
        ({"method": "awq"}, "method awq learns from text, and none is named"),
        ({"method": "dwq"}, "give calibration, or data with a train split"),
        ({"method": "gptq", "q_bits": 3}, "method gptq packs q_bits 2, 4 or 8, not 3"),
        ({"method": "dwq", "q_bits": 8}, "use method plain"),
        ({"method": "awq", "q_mode": "mxfp4"}, "q_mode affine only"),
        ({"method": "dynamic_quant", "high_bits": 4}, "high_bits 4 must be more than q_bits 4"),
        ({"method": "dynamic_quant", "target_bpw": 3.0}, "use more than 4 and less than 6"),
        ({"method": "none"}, "method none changes the dtype only: name one"),
        ({"variants": "4 4:64"}, "two variants are called q4"),
        ({"variants": "4 nine"}, "'nine' is not a variant: write bits or bits:group"),
        ({"variants": [{"q_bit": 4}]}, "variant 1 (q_bit=4): q_bit: Extra inputs"),
        ({"variants": "8 7"}, "variant 2 (q_bits=7): q_bits 7 has no kernel"),
        ({"variants": "8 gptq"}, "method gptq learns from text"),
        ({"variants": [{"q_bits": 4, "name": "a b"}]}, "'a b' cannot name a variant"),
        ({"variants": [{"q_bits": 4, "name": "model"}]}, "'model' cannot name a variant"),
        ({"max_size": "4 apples"}, "is not a size"),
        ({"test_batches": 0}, "test_batches 0 measures nothing"),
        ({"max_size": 0}, "leaves no room for any model"),
    ],
)
def test_what_cannot_be_is_refused(keys: dict[str, Any], words: str) -> None:
    assert words in refusal(**keys)
