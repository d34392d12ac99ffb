"""What answers are worth by each metric, judged in the process that judges."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from worker.engine.eval import execution, sql
from worker.engine.eval.judge import Case, Judgement
from worker.engine.eval.scoring import Judge

WIKI = "table: 1-10-1\ncolumns: Player, No., Years in Toronto, School/Club Team\nQ: who?\nA:"
CREATE = "CREATE TABLE head (name TEXT, age INT); CREATE TABLE dept (id INT, boss INT)"


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    with Judge(patience=5) as found:
        yield found


def ask(judge: Judge, metric: Any, answer: str, reference: str = "", **more: Any) -> Judgement:
    return judge.judge(Case(metric=metric, answer=answer, reference=reference, **more))


@pytest.mark.parametrize(
    ("metric", "answer", "reference", "more", "score"),
    [
        ("exact_match", "a  b\n", "a b", {}, 1),
        ("exact_match", "a  b", "a b", {"normalize_whitespace": False}, 0),
        ("exact_match", "A", "a", {}, 0),
        ("exact_match", "STRASSE", "straße", {"ignore_case": True}, 1),
        ("regex", "id 42.", "", {"pattern": r"\bid \d+"}, 1),
        ("regex", "ID 42", "", {"pattern": "^id"}, 0),
        ("regex", "ID 42", "", {"pattern": "^id", "ignore_case": True}, 1),
        # Lin's own example: three and two words in order, of four and four.
        ("rouge_l", "police kill the gunman", "police killed the gunman", {}, 0.75),
        ("rouge_l", "the gunman kill police", "police killed the gunman", {}, 0.5),
        ("rouge_l", "один два", "один два три", {}, 0.8),
        ("rouge_l", "", "words", {}, 0),
        ("rouge_l", "words", "…", {}, None),
        ("json_schema", '{"a": 1}', "", {"schema_text": '{"required": ["a"]}'}, 1),
        ("json_schema", '{"b": 1}', "", {"schema_text": '{"required": ["a"]}'}, 0),
        ("json_schema", "{a: 1}", "", {"schema_text": "{}"}, 0),
        ("json_schema", "[" * 99_999, "", {"schema_text": "{}"}, 0),
        ("json_schema", "{}", "", {"schema_text": '{"type": "nothing"}'}, None),
        ("json_schema", "{}", "", {"schema_text": '{"$ref": "http://127.0.0.1:9/s"}'}, None),
        ("json_schema", "[[]]", "", {"schema_text": '{"$ref": "#"}'}, 0),
    ],
)
def test_texts_are_judged(
    judge: Judge,
    metric: str,
    answer: str,
    reference: str,
    more: dict[str, Any],
    score: float | None,
) -> None:
    assert ask(judge, metric, answer, reference, **more).score == score


@pytest.mark.parametrize(
    ("answer", "matches", "finds_the_same"),
    [
        ("SELECT Player FROM 1-10-1 WHERE No. = '3'", True, True),
        ("```sql\nselect player from 1-10-1 where no. = '3';\n```", True, True),
        ('SELECT "Player" FROM "1-10-1" WHERE \'3\' = "No."', True, True),
        ('SELECT Player FROM "1-10-1" WHERE "No." IN (3)', False, True),
        ("SELECT Player FROM 1-10-1 WHERE No. > '3'", False, False),
        ("SELECT COUNT Player FROM 1-10-1 WHERE No. = '3'", False, False),
        ("SELECT Player FROM 1-10-1", False, False),
        ("SELECT Height FROM 1-10-1 WHERE No. = '3'", False, False),
        ("SELECT Player FROM 1-10-1 WHERE No. = '3'; DROP TABLE x", False, False),
        ("I cannot say.", False, False),
        ("", False, False),
        ("(" * 3000, False, False),
    ],
)
def test_sql_is_compared_as_text_and_by_what_it_finds(
    judge: Judge, answer: str, matches: bool, finds_the_same: bool
) -> None:
    reference = "SELECT Player FROM 1-10-1 WHERE No. = '3'"
    assert ask(judge, "sql_match", answer, reference, prompt=WIKI).score == matches
    found = ask(judge, "execution_match", answer, reference, prompt=WIKI)
    assert found.score == finds_the_same, found.note


@pytest.mark.parametrize(
    ("reference", "answer", "same"),
    [
        ("SELECT name FROM head WHERE age > 40", "SELECT name FROM head WHERE 40 < age", True),
        ("SELECT name FROM head WHERE age > 40", "SELECT name FROM head WHERE age >= 40", False),
        ("SELECT MAX(age) FROM head", "SELECT age FROM head ORDER BY age DESC LIMIT 1", True),
        ("SELECT MAX(age) FROM head", "SELECT MIN(age) FROM head", False),
        ("SELECT name FROM head ORDER BY age, name", "SELECT name FROM head", False),
        ("SELECT name FROM head", "SELECT name FROM head ORDER BY age", True),
        ("SELECT COUNT(*) FROM head", "SELECT COUNT(name) FROM head", True),
        ("SELECT DISTINCT name FROM head", "SELECT name FROM head", False),
        (
            "SELECT name FROM head JOIN dept ON dept.boss = head.age WHERE dept.id = 2",
            "SELECT name FROM dept d, head h WHERE h.age = d.boss AND d.id = 2",
            True,
        ),
        ("SELECT name FROM head", "SELECT load_extension('x') FROM head", False),
    ],
)
def test_databases_are_made_of_a_schema(
    judge: Judge, reference: str, answer: str, same: bool
) -> None:
    found = ask(judge, "execution_match", answer, reference, schema_text=CREATE)
    assert found.score == same, found.note


def test_rows_that_a_schema_brings_are_used_as_they_are(judge: Judge) -> None:
    rows = "INSERT INTO head VALUES ('ann', 41), ('bob', 40); INSERT INTO dept VALUES (1, 2)"
    schema = f"{CREATE}; {rows}"
    reference = "SELECT name FROM head WHERE age > 40"
    answer = "SELECT name FROM head WHERE age = 41"
    assert ask(judge, "execution_match", answer, reference, schema_text=schema).score == 1
    assert ask(judge, "execution_match", answer, reference, schema_text=CREATE).score == 0


@pytest.mark.parametrize("reference", ["no query", "SELECT nothing FROM head"])
def test_a_reference_that_cannot_be_run_judges_nothing(judge: Judge, reference: str) -> None:
    found = ask(judge, "execution_match", reference, reference, schema_text=CREATE)
    assert (found.score, "reference" in found.note) == (None, True)


def test_what_takes_too_long_ends_its_process_and_the_next_one_is_judged() -> None:
    with Judge(patience=1) as judge:
        assert ask(judge, "regex", "a", pattern="a").score == 1
        slow = ask(judge, "regex", "a" * 60 + "b", pattern="(a+)+$")
        assert (slow.score, "more than 1 s" in slow.note) == (0, True)
        assert ask(judge, "regex", "a", pattern="a").score == 1
        # One function of SQLite's, within every limit, that looks at no clock while it runs.
        query = f"""
            WITH s AS (SELECT replace(replace('{"a" * 30}', 'a', '{"a" * 30}'), 'a', '{"a" * 999}')
            AS x) SELECT instr(x, substr(x, 1, 400000) || 'b') FROM s"""
        slow = ask(judge, "execution_match", query, "SELECT a FROM t WHERE a = 1")
        assert (slow.score, "more than 1 s" in slow.note) == (0, True)


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        (
            "select a from t where (x=1 or y=2) and z=3",
            "select a from t where z=3 and (y=2 or 1=x)",
            1,
        ),
        (
            "select a from t where x=1 or y=2 and z=3",
            "select a from t where (x=1 or y=2) and z=3",
            0,
        ),
        ("select t.a from t", "select a from t", 1),
        ("select a as z from t", "select a from t", 1),
        ("select a from t where x in (1,2)", "select a from t where x in (2,1)", 1),
        ("select a, b from t", "select b, a from t", 0),
        ("select a from t where s = 'X'", "select a from t where s = 'x'", 0),
    ],
)
def test_one_form_keeps_what_is_said(first: str, second: str, same: int) -> None:
    one, other = (sql.read(text, sql.Schema()) for text in (first, second))
    assert one is not None
    assert other is not None
    assert (sql.normal(one) == sql.normal(other)) == bool(same)


def test_every_answer_of_wikisql_is_read_and_finds_what_it_finds() -> None:
    path = Path(__file__).parents[4] / "shared" / "data" / "wikisql" / "test.jsonl"
    if not path.is_file():
        pytest.skip("WikiSQL is not here")
    undecided = 0
    for line in path.read_text().splitlines():
        prompt, _, answer = json.loads(line)["text"].rpartition("A:")
        schema = sql.schema_of(prompt)
        statement = sql.read(answer, schema)
        assert statement is not None, answer
        try:
            assert execution.same_result(statement, statement, schema) == (True, "")
        except execution.Undecidable:
            undecided += 1
    assert undecided <= 1
