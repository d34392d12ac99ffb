"""What a person does in the team's store, in a real browser; named by the action."""

import re

import pytest
from playwright.sync_api import Browser, Page, expect

from espalier.states import ArtifactKind
from tests.browser import things
from tests.browser.conftest import Site, refused

pytestmark = pytest.mark.browser


def published(site: Site, name: str, *cards: str) -> None:
    """Publish one version of ``team/<name>`` for each text of a card."""
    for seed, card in enumerate(cards, 1):
        contents = {
            "README.md": card.encode(),
            "config.json": b'{"model_type": "qwen2", "rope_theta": %d}' % seed,
            "model.safetensors": things.weights(1, seed),
            "extra/notes.txt": b"one\ntwo\n",
        }
        site.seed.publish(name, ArtifactKind.MODEL, contents)


def test_find_an_artifact_by_kind_name_and_alias(page: Page) -> None:
    page.goto("/artifacts")
    page.get_by_role("navigation", name="Kinds").get_by_text("gguf").click()
    expect(page).to_have_url(re.compile("kind=gguf"))
    expect(page.locator("tbody tr")).to_have_count(1)
    page.goto("/artifacts")
    page.select_option("[name=alias]", "production")
    expect(page).to_have_url(re.compile("alias=production"))
    expect(page.locator("tbody")).to_contain_text("team/sql-tiny")
    page.select_option("[name=made]", "job")
    expect(page.locator("main")).to_contain_text("No artifact fits")
    page.goto("/artifacts?sort=size")
    expect(page.locator("tbody tr").first).to_contain_text("team/sql-lora-fused")


def test_read_a_card_and_copy_a_command(page: Page, site: Site) -> None:
    page.goto("/team/qwen2.5-0.5b")
    card = page.locator(".card")
    expect(card.locator("h2")).to_have_text("Qwen2.5 0.5B, instruct")
    expect(card.locator("td").nth(2)).to_have_text("9.814")
    page.get_by_text("About").click()
    expect(page.locator("main")).to_contain_text("apache-2.0")
    uses = page.locator(".uses details")
    expect(uses.first.locator("pre").first).to_contain_text(
        f"HF_ENDPOINT={site.url} HF_TOKEN=$ESPALIER_TOKEN mlx_lm.generate"
    )
    uses.filter(has_text="vLLM").locator("summary").click()
    # What is copied is one line a command, whatever is broken on the screen.
    text = uses.filter(has_text="vLLM").locator("pre").evaluate("e => e.textContent")
    assert text == f"HF_ENDPOINT={site.url} HF_TOKEN=$ESPALIER_TOKEN vllm serve team/qwen2.5-0.5b"
    card.get_by_role("link", name="config").click()
    expect(page.locator("#file pre")).to_contain_text('"model_type": "qwen2"')


def test_look_into_the_files_of_a_version(page: Page, site: Site) -> None:
    published(site, "looked-into", "# x")
    page.goto("/team/looked-into")
    page.get_by_role("navigation", name="Of this version").get_by_text("Files").click()
    page.click("text=extra/")
    page.click("text=notes.txt")
    expect(page.locator("#file pre")).to_have_text("one\ntwo\n")
    page.locator(".crumbs.mono").get_by_role("link", name="looked-into").click()
    page.click("text=model.safetensors")
    expect(page.locator("#file header")).to_contain_text("5 tensors, 49\u202f728 parameters")
    expect(page.locator("#file tbody tr").first).to_contain_text("model.embed_tokens.weight")
    page.goto("/team/sql-lora-fused-gguf/v/1/files/model-q8_0.gguf")
    expect(page.locator("#file")).to_contain_text("general.architecture")
    expect(page.locator("#file tbody")).to_contain_text("Q8_0")
    page.goto("/team/wikisql/v/1/files/train.jsonl")
    expect(page.locator(".rows > li")).to_have_count(20)
    page.click("text=Next rows")
    expect(page).to_have_url(re.compile(r"at=\d+"))
    expect(page.locator(".rows > li")).to_have_count(20)


def test_follow_the_picture_of_a_lineage(page: Page) -> None:
    page.goto("/team/sql-lora")
    picture = page.locator("svg.lineage")
    expect(picture.locator("a.here .name")).to_have_text("sql-lora")
    expect(picture.locator("a.job title").first).to_contain_text("Apple")
    expect(page.locator(".family [aria-current]")).to_contain_text("mlx-lm 0.32.2")
    picture.locator("a", has_text="wikisql").click()
    expect(page.locator("h1")).to_contain_text("wikisql v1")
    page.locator("svg.lineage a.job", has_text="train").click()
    expect(page).to_have_url(re.compile("/jobs/"))


def test_move_an_alias_take_it_back_and_be_refused_by_its_gate(page: Page, site: Site) -> None:
    published(site, "moved", "# one", "# two")
    for number in (1, 2):
        page.goto(f"/team/moved/v/{number}")
        page.fill("[name=alias]", "champion")
        page.click(f"text=Point at v{number}")
        expect(page.locator(".note")).to_have_text(f"champion points at v{number}.")
    page.click("text=Back to v1")
    expect(page.locator("#names li")).to_contain_text("v1")
    page.click("text=their moves")
    expect(page.locator("#moves li")).to_have_count(3)
    expect(page.locator("#moves li").first).to_contain_text("v2 → v1")
    expect(page.locator("#moves li").first).to_contain_text("rolled back by admin")
    page.goto("/team/sql-tiny/v/2")
    expect(page.locator("#names")).to_contain_text("at least 0.05 better")
    page.fill("[name=alias]", "production")
    page.click("text=Point at v2")
    expect(page.locator(".note.bad")).to_contain_text("espalier eval")
    expect(page.locator("#names li").first).to_contain_text("v3")


def test_delete_and_bring_back_without_a_script(
    browser: Browser, site: Site, state: dict[str, object]
) -> None:
    published(site, "dropped", "# one", "# two")
    context = browser.new_context(
        base_url=site.url,
        storage_state=state,  # type: ignore[arg-type]
        java_script_enabled=False,
    )
    page = context.new_page()
    page.goto("/team/dropped/v/1")
    page.click("text=Delete this version")
    expect(page.locator("h1")).to_have_text("Delete team/dropped@v1?")
    page.click("button:has-text('Delete')")
    expect(page.locator("#v1")).to_contain_text("deleted")
    page.goto("/team/dropped/v/1")
    expect(page.locator("h1")).to_have_text("team/dropped@v1 was deleted")
    page.click("text=Bring it back")
    expect(page.locator("#v1")).not_to_contain_text("deleted")
    page.goto("/team/dropped")
    page.click("text=all of team/dropped")
    page.click("button:has-text('Delete')")
    expect(page.locator("h1")).to_have_text("team/dropped was deleted")
    page.goto("/artifacts?deleted=yes")
    page.click("text=team/dropped")
    page.click("text=Bring it back")
    expect(page.locator("h1")).to_contain_text("dropped v2")
    context.close()


def test_compare_two_versions(page: Page, site: Site) -> None:
    published(site, "compared", "# one\n", "# two\n")
    page.goto("/team/compared/versions")
    page.locator("#v1").get_by_text("Compare").click()
    expect(page.locator("h1")).to_contain_text("team/compared@v1 → team/compared@v2")
    expect(page.locator("#config tbody")).to_contain_text("rope_theta")
    expect(page.locator("#tensors tbody tr").first).to_contain_text("values")
    expect(page.locator("#tensors progress").first).to_be_visible()
    expect(page.locator("#card .new")).to_contain_text("# two")
    page.fill("[name=to]", "team/sql-tiny@v1")
    page.click("button:text-is('Compare')")
    expect(page.locator("h1")).to_contain_text("team/sql-tiny@v1")
    page.fill("[name=to]", "v77")
    with refused(page, 404):
        page.click("button:text-is('Compare')")
    expect(page.locator(".note.bad")).to_contain_text("v77")


def test_see_what_storage_is_for_and_sweep_it(page: Page) -> None:
    page.goto("/artifacts")
    page.get_by_role("link", name="Storage").click()
    expect(page.locator("#project-team")).to_contain_text("no quota")
    expect(page.locator(".facts")).to_contain_text("a sweep would free")
    page.click("text=Sweep now")
    expect(page.locator(".note")).to_contain_text("Freed 0 B")


def test_the_store_fits_a_phone(browser: Browser, site: Site, state: dict[str, object]) -> None:
    context = browser.new_context(
        base_url=site.url,
        storage_state=state,  # type: ignore[arg-type]
        viewport={"width": 390, "height": 844},
    )
    page = context.new_page()
    for address in (
        "/artifacts",
        "/team/qwen2.5-0.5b",
        "/team/qwen2.5-0.5b/v/1/files/model.safetensors",
        "/team/sql-tiny/versions",
        "/team/sql-tiny/compare?from=v1&to=v3",
        "/storage",
    ):
        page.goto(address)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, address
    page.goto("/team/sql-lora")
    expect(page.locator("svg.lineage")).to_be_hidden()
    expect(page.locator(".family")).to_be_visible()
    context.close()
