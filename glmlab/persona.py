"""What each task brings to a conversation with its model: the prompt of its training, example questions, what must be said. Text only."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Persona:
    """How a task talks."""
    task: str
    base: str                                            # where no run says which
    messages: Callable[[list[dict]], list[dict]] = list  # conversation without system message -> the same as training writes it
    examples: dict[str, list[str]] = field(default_factory=dict)  # scene -> questions to try
    rounds: bool = True                                  # earlier rounds belong to the prompt
    disclaimer: dict[str, str] = field(default_factory=dict)  # language -> what stands above everything; empty for none
    emergency: Callable[[str], str | None] = lambda text: None  # question -> the fixed line before the answer
    relations: Mapping[str, object] | None = None        # of the triples that it extracts; None for a task without triples


def intent(form: str = "system") -> Persona:
    """Every message is one call; the prompt is that of project 1."""
    from glmlab.tasks import intent
    return Persona("intent", "glm4-tiny", lambda turns: intent.messages(turns[-1]["content"], form=form), rounds=False, examples={
        "电信": ["您好请讲[SEP]我想把彩铃退了[SEP]好的已经为您取消", "您好请讲[SEP]我想查一下这个月的话费[SEP]好的我帮您看一下"]})


def triplets(form: str = "instruction", relations: Mapping | None = None) -> Persona:
    """Every message is one text to extract from. relations: {name: Relation} of the run; None takes those of the course."""
    from glmlab.tasks import triplets
    known = triplets.RELATIONS if relations is None else relations
    return Persona("triplets", "chatglm-tiny", lambda turns: triplets.messages(turns[-1]["content"], None, form, known), rounds=False,
                   relations=known, examples={"新闻": ["林晓雯毕业于江宁大学，现在在云帆科技工作。", "云帆科技的总部设在苏州，由周子航创立。"]})


def service(form: str = "chat") -> Persona:
    """Customer service in three scenes, with history."""
    from glmlab.tasks import service
    asked = (["如何退货？", "我昨天付款的怎么还没发货", "收到货少了一件怎么办？"], ["耳机声音断断续续怎么办？", "忘记路由器管理密码怎么办？", "有信号但打不开网页"],
             ["忘记银行卡密码怎么办？", "定期存款能提前取吗？", "贷款逾期有什么后果"])
    return Persona("service", "chatglm-tiny", lambda turns: service.in_form(turns, form), dict(zip(service.SCENES.values(), asked)))


def medical(form: str = "chat") -> Persona:
    """Medical questions: teaching material, never advice."""
    from glmlab.tasks import medical
    return Persona("medical", "chatglm3-tiny", lambda turns: [*turns[:-1], *medical.messages(turns[-1]["content"], form=form)],
                   disclaimer=medical.DISCLAIMER, emergency=medical.emergency,
                   examples={"内科": ["血压有点高平时要注意什么？", "感冒发烧什么时候该去医院？"], "儿科": ["孩子咳嗽三天了怎么办？"]})


PERSONAS = {"intent": intent, "triplets": triplets, "service": service, "medical": medical}


def persona(task: str, form: str = "", **options) -> Persona:
    """The persona of a task. form: of the prompt, as its model was trained; "" for the task's usual one. options: the task's own.

    Errors: ValueError names the tasks there are; messages of a persona with another task's form raise one that names the forms.
    """
    if task not in PERSONAS:
        raise ValueError(f"unknown task {task!r}; there are: {', '.join(PERSONAS)}")
    return PERSONAS[task](form, **options) if form else PERSONAS[task](**options)
