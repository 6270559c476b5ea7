"""The 34 intent labels of CMCC-34. Source: two independent public copies of the data agree on all of them."""

from typing import NamedTuple


class Label(NamedTuple):
    """One label: id, full name, group 0 咨询 (inquiry), 1 投诉 (complaint), 2 办理 (have it done)."""
    id: int
    name: str
    group: int


GROUPS = ("咨询（含查询）", "投诉（含抱怨）", "办理")
_SHORT = """C业务规定 B取消 C业务资费 C营销活动信息 C办理方式 T业务使用问题 C账户信息 B开通 C业务订购信息查询 T不知情定制问题 C产品/业务功能
C用户资料 T费用问题 T业务办理问题 T服务问题 B变更 C服务渠道信息 T业务规定不满 T营销问题 T网络问题 B停复机 T信息安全问题 B重置/修改/补发
C使用方式 C号码状态 C工单处理结果 B打印/邮寄 C宽带覆盖范围 B移机/装机/拆机 B缴费 B下载/设置 B补换卡 B销户/重开 C电商货品信息""".split()
LABELS = tuple(Label(i, GROUPS["CTB".index(short[0])] + short[1:], "CTB".index(short[0])) for i, short in enumerate(_SHORT))
NAMES = [label.name for label in LABELS]
