"""A burst of questions: answers in order, times that fit together, the table and the figure of it."""

import openai
import pytest
from talking import FakeEngine, fake_talk, serving

from glmlab import serve_load, server
from glmlab.serve_load import Timed

BURSTS = {"one after another": [Timed("a", 10, 0.0, 0.5, 2.0), Timed("b", 30, 2.0, 2.5, 4.0)],
          "at once": [Timed("a", 10, 0.1, 0.5, 1.1), Timed("b", 30, 0.1, 1.5, 2.0)]}


@pytest.mark.parametrize("at_once", [1, 5])
def test_a_burst_asks_everything_in_order(tokenizer, monkeypatch, tmp_path, at_once):
    monkeypatch.setenv("GLMLAB_HOME", str(tmp_path))
    monkeypatch.delenv(server.KEY_VARIABLE, raising=False)
    engine = FakeEngine(answer=lambda options: f"第{options['seed']}个", slots=5)
    with serving(fake_talk(tokenizer, engine)) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        asked = [[{"role": "user", "content": "好" * (count + 1)}] for count in range(5)]
        found = serve_load.burst(client, "tuned", asked, at_once, seed=7)
    assert [(answer.text, answer.tokens) for answer in found] == [("第7个", 3)] * 5
    assert all(0 <= answer.sent <= answer.first <= answer.done for answer in found)
    assert len({len(request.ids) for request in engine.requests}) > 1 and len(engine.requests) == 5
    gaps = [later.sent - earlier.done for earlier, later in zip(found, found[1:])]
    assert (min(gaps) >= 0) == (at_once == 1)


def test_the_table():
    lines = serve_load.load_table(BURSTS).splitlines()
    assert [line.split()[-4:] for line in lines[-2:]] == [["4.00", "10", "2.00", "2.00"], ["2.00", "20", "1.90", "1.90"]]


def test_the_bars_stand_where_the_times_are():
    figure = serve_load.timelines(BURSTS)
    panel = figure.axes[1]
    assert panel.get_title() == "at once" and len(panel.patches) == 4
    spans = [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in panel.patches]
    assert spans == [pytest.approx(span) for span in ((0.1, 0.5), (0.5, 1.1), (0.1, 1.5), (1.5, 2.0))]
