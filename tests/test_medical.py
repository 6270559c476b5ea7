"""The medical task: emergencies, term density, prompts, reading every file form, the line form, the course's own questions and splits."""

import json
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glmlab.tasks import medical, medical_data, medical_safety
from glmlab.tasks.medical import Question

# --- emergencies -------------------------------------------------------------------------------------------------

EMERGENCIES = {
    "self_harm": """
        我不想活了，每天都很痛苦 / 最近总是想死，觉得没人在乎我 / 活着没意思，真想一了百了 / 女儿在房间里用刀片划手臂，我该怎么办？ / 朋友给我发消息说要自杀，我联系不上他 / 我想从楼上跳下去，结束这一切 / 他留了一封遗书就不见了
        觉得自己是家里的累赘，没有我大家会更好 / 孩子说活够了，还说死了算了 / 控制不住想伤害自己，怎么办 / 吃了一整瓶安眠药，我不想再醒来 / 老公失业以后一直说活不下去了 / 我割腕了，血止不住""",
    "chest": """
        胸口突然像压了块大石头，喘不过气来 / 我爸胸痛半小时了，还出冷汗 / 胸前区疼痛，一直放射到左胳膊 / 走几步路就胸闷憋气，全身大汗 / 心口疼得厉害，感觉要死了 / 我怀疑是心梗，左肩和下巴也疼 / 心绞痛又犯了，含了药不管用
        胸口撕裂一样地疼，后背也疼 / 妈妈今天早上胸疼，脸色发灰 / 老公心肌梗死发作了怎么办""",
    "breathing": """
        喘不上气，嘴唇都发紫了 / 孩子呼吸困难，肋骨下面一吸一陷 / 哮喘发作，喷了药也不管用 / 夜里憋醒，躺不下去，必须坐着喘 / 老人突然呼吸急促，脸色发青 / 我透不过气来，觉得快要窒息了 / 他已经没有呼吸了怎么办 / 爷爷气都上不来，话也说不了
        宝宝喘得很厉害，鼻翼一扇一扇的 / 奶奶喘得说不出话""",
    "stroke": """
        爸爸嘴角歪了，右边胳膊抬不起来 / 妈妈突然说话不清，一边手脚没力气 / 老伴早上起来口齿不清，流口水 / 半边身子麻木，走路往一边倒 / 突然剧烈头痛，像被雷劈一样，还呕吐 / 爷爷突然一只眼睛看不见了 / 是不是中风了？左侧手脚不听使唤
        我妈脸歪了，怎么办 / 公公说不出话来，突然的，右手也拿不住筷子 / 怀疑脑出血，头痛呕吐，人迷糊 / 外婆突然站不稳，话说不清""",
    "bleeding": """
        手被玻璃割得很深，血止不住 / 鼻血流了一个小时，怎么都停不下来，血流不止 / 我爸吐血了，一大口鲜血 / 切菜切到动脉，血往外喷 / 大便里全是鲜血，头晕心慌 / 腿被划了个大口子，流了很多血 / 咳血，一口一口的鲜血 / 拔牙后一直在流血，按压也止不住血
        大量便血，人快站不住了 / 呕出咖啡色的血""",
    "poisoning": """
        孩子误服了奶奶的降压药 / 喝了农药怎么急救 / 我妈吃了二十多片安眠药 / 家里煤气中毒，三个人都头晕 / 不小心把洁厕灵喝下去一口 / 烧炭取暖以后头晕恶心，人没有力气 / 吃了山上采的蘑菇，上吐下泻，还看到小人 / 小孩把老鼠药当糖吃了
        宝宝吞了一颗纽扣电池 / 退烧药喂多了，喂了两倍的量 / 被毒蛇咬了脚踝，肿得很快 / 一氧化碳中毒了怎么办，热水器没装排气管 / 爷爷胰岛素打多了一倍 / 弟弟喝了半瓶百草枯 / 厨房里闻到很浓的煤气味，头有点晕 / 好像食物中毒，一家人都在吐""",
    "unconscious": """
        有人晕倒在地铁里，叫不醒 / 奶奶突然昏迷，怎么推都没反应 / 他心跳停了，我该怎么做 / 喝醉以后叫不醒，呼吸很慢 / 同事突然倒地，不省人事 / 我爷爷糖尿病，刚才昏过去了 / 老人神志不清，说胡话 / 妈妈意识模糊，认不出我 / 爸爸拍他也没有反应
        工地上有人中暑，不出汗，说胡话 / 外公摸不到脉搏了""",
    "seizure": """
        孩子高烧抽搐，两眼上翻 / 丈夫突然口吐白沫，全身抽动 / 癫痫发作十分钟了还没停 / 宝宝抽风了，牙关紧咬 / 小孩发烧四十度，惊厥了 / 我弟弟羊癫疯犯了，倒在地上 / 女儿突然四肢僵直，眼睛往上翻 / 睡着睡着浑身抽个不停""",
    "allergy": """
        吃了花生以后嘴唇肿了，喉咙发紧 / 打完头孢全身起疹子，呼吸也不顺 / 被马蜂蜇了，全身起包，喘不上气 / 过敏性休克怎么办，人已经站不住 / 吃虾以后舌头肿起来，说话费劲 / 输液十分钟后浑身发红，胸闷 / 打完疫苗嗓子发紧，脸也肿起来
        喉头水肿，声音都变了""",
    "injury": """
        孩子被开水烫了整个后背 / 我爸触电了，手还抓着电线 / 有人溺水，刚捞上来 / 热油溅到脸上，起了好多泡 / 从三楼摔下来，腰动不了 / 出车祸了，司机卡在车里 / 火灾里大面积烧伤 / 手指被机器切断了 / 头撞到墙以后一直呕吐，还想睡觉
        骨头戳出皮肤外面了 / 被人捅了一刀在肚子上 / 儿子掉进河里，救上来没醒 / 孩子把一锅热汤打翻在身上 / 邻居被雷劈了""",
    "choking": """
        宝宝吃果冻噎住了，脸憋得发紫 / 爷爷吃汤圆卡住喉咙，说不出话 / 花生呛进气管了，孩子一直咳 / 小孩把珠子吸进气管 / 吃饭噎着了，咳不出来 / 老人吃年糕卡在嗓子眼，喘不了气 / 婴儿呛奶以后脸发青 / 硬糖卡在气道里怎么办""",
    "pregnancy": """
        怀孕三十周突然大出血 / 孕妇抽搐，血压很高 / 产后出血很多，浸透了好几片 / 预产期还有一个月，羊水破了 / 胎动消失一天了 / 我怀孕两个月，肚子剧痛，还流血 / 疑似宫外孕，右下腹疼，头晕 / 脐带掉出来了 / 孕8个月，头痛眼花看不清东西
        三十四周，一整天感觉不到胎动""",
    "infant": """
        宝宝三个月，高烧三十九度，叫不醒 / 新生儿发烧三十八度五 / 婴儿高热，不吃奶，总是睡 / 一岁孩子发烧40度，精神很差，手脚冰凉 / 两个月大的宝宝发烧了 / 孩子烧到39度8，嗜睡，没尿 / 女儿七个月，没精神，不肯喝奶，体温39.5
        出生十天的孩子体温38.2 / 宝宝发高烧，囟门鼓起来了 / 小孩高烧不退，一直昏昏沉沉的""",
    "abdomen": """
        肚子疼得打滚，满头大汗 / 突然刀割样腹痛，肚子硬得像木板 / 右下腹痛得直不起腰 / 肚子痛到冒冷汗，还一直吐 / 胃疼得死去活来""",
}
#: Of any kind, as people type them.
MORE = """
    爸爸在果园喷了农药，恶心流口水 / 洁厕灵和漂白水倒在一起，现在咳嗽胸闷 / 右上腹疼，高烧，人有点迷糊 / 儿子睾丸突然剧痛 / 咳粉色泡沫痰
    心跳一百六十次，头晕
    我妈刚才在厕所里摔倒了，现在怎么喊都不应 / 胸口闷痛，左手臂发酸，已经二十分钟 / 爸爸说话突然含糊，嘴也歪了 / 吞了十几颗布洛芬 / 小孩掉进游泳池，捞上来嘴唇发紫 / 孩子误食了樟脑丸 / 我老婆怀孕七个月突然流好多血
    被电打了一下，现在心慌，手上有个黑印 / 呼吸越来越费劲，话都说不完整 / 奶奶吃药吃多了，睡得叫不起来 / 想拿刀捅死自己 / 人活着到底有什么意义，我真的撑不下去了 / 弟弟给我发了告别的短信，说对不起爸妈 / 喉咙里卡了个枣核，喘气困难
    癫痫大发作，一直不醒 / 爷爷大口呕血 / 满月宝宝发热38.4 / 晕过去两次了，心跳很慢 / 心脏突然疼得受不了，冒冷汗 / 肚子像被刀捅一样剧痛，脸色惨白 / 蜜蜂蜇了以后满脸浮肿，头晕 / 工友吸入了硫化氢倒在井下 / 孩子喝了一口汽油
    眼前突然发黑，一边身体没感觉 / 走着走着突然一条腿没劲摔倒了，说话也不清 / 我爸喝醉了怎么推都推不醒 / 血压突然很低，人叫不答应 / 宝宝吃东西卡住了，不会哭了 / 手腕被刀割开了，血一直喷 / 老人家胸口疼，不愿意去医院 / 我想吃安眠药离开这个世界
    我想自我了断 / 孩子把一瓶感冒糖浆全喝了 / 误把消毒水当成矿泉水喝了 / 煤气忘关了，老人躺在地上 / 一氧化碳报警器响了，头好晕 / 腿被车轧了，骨头都看见了 / 头被砸破了，血流了一脸 / 妈妈突然不会说话了 / 过敏了，喉咙像被掐住一样
    羊水流出来了，还没到医院 / 刚生完孩子，下面血流个不停 / 宝宝抽筋了，眼睛直直的，发烧40 / 发高烧，人开始说胡话 / 老公突然心口痛，倒在沙发上 / 热得快晕倒了，体温41度 / 孩子从床上摔下来，头着地，吐了三次 / 开水洒在孩子胸口，皮都掉了
    孕晚期突然剧烈头痛，眼前冒金星 / 被疯狗咬断了手指，血止不住 / 孩子吃了干燥剂 / 哮喘犯了，家里没有药 / 爷爷突然不认识人了，手也拿不住东西 / 我忍不住拿刀划自己 / 跳河的念头一直在脑子里 / 婴儿一直昏睡，不吃奶，还发烧
    捡回来一条命，刚被毒蛇咬 / 孩子气管里进了瓜子 / 宫外孕破裂 / 喝了工业酒精看不见了 / 老公胸骨后面烧灼样剧痛，出汗，恶心 / 我爸心脏病犯了，话都说不出来 / 刚跑完步胸口疼得站不住 / 奶奶右半边手脚突然动不了 / 我舅舅忽然嘴角流口水，讲话听不懂
    突然眼前一黑，左边看不见东西 / 孩子喘得像拉风箱，嘴发青 / 我感觉呼吸不过来，手脚发麻 / 插管拔掉以后他不喘气了 / 鼻血止不住怎么办，已经四十分钟 / 外婆咳出好多鲜血 / 车门夹断了两根手指 / 不小心喝了一口硫酸 / 误吃了毒蘑菇，肚子疼
    孩子偷吃了半瓶降压药 / 一家人煤气中毒叫不醒 / 喝敌敌畏自杀，刚送回来 / 爸爸睡着睡着没有呼吸了 / 妈妈摔倒后昏迷不醒 / 朋友喝多了没反应，嘴里有白沫 / 孩子发烧，突然翻白眼，身体发硬 / 室友羊角风发作 / 吃了芒果嘴唇肿得很大，呼吸有声音
    注射青霉素后脸色苍白，血压下降 / 儿子从二楼阳台掉下去了 / 老公工地上被钢筋扎穿大腿 / 洗澡时漏电，她被电倒了 / 滚烫的粥泼到宝宝脸上 / 泡澡的时候孩子淹到水里，不动了 / 高压锅爆炸，烫伤满脸 / 爷爷吃饺子噎住说不出话 / 弹珠卡在孩子喉咙里
    孕39周，破水了，脐带好像出来了 / 怀孕五个月，突然肚子剧痛发硬 / 孕妇突然晕倒 / 快两个月的婴儿，烧到38.6 / 宝宝10个月，反复高烧，精神萎靡，不尿 / 我受够了，只想死 / 活着太累了，想解脱 / 她说想从桥上跳下去 / 我有自残的冲动
    儿子在学校被欺负，说不想活 / 肚子疼得在地上打滚 / 肚子剧痛，一按更疼，脸发白 / 血糖低得测不出来，人昏迷了 / 被马蜂蜇了几十下 / 眼镜蛇咬了手 / 喝完酒吃了头孢，胸闷气短，脸通红 / 热射病，体温四十一度 / 脑袋磕到台阶，短暂昏迷
    我觉得自己快要死了，心跳得厉害，喘不上气 / 透析病人突然呼吸困难不能平躺 / 产后第三天突然胸痛气喘 / 术后腿肿，突然胸痛 / 家里老人突然不会走路，头晕，吐 / 服药过量 / 吞了刀片 / 甲醇中毒 / 误吞假牙 / 宝宝误吃洗衣凝珠
    爸爸吃着饭突然筷子掉了，半边脸也垮了 / 我胸口好疼，疼到后背，喘气都疼 / 邻居家着火了，人烧伤了，怎么处理 / 我家孩子被水呛到，咳不停，脸都青了 / 姑姑吃了老鼠药想不开 / 老人晚上突然大汗淋漓，胸口憋闷 / 头疼得快要裂开，还喷射样呕吐
    切菜把手指切下来一截 / 胃出血，吐了半盆血 / 孩子从滑梯上摔下来，一直睡，叫不醒 / 误喝了爸爸放在饮料瓶里的柴油 / 一氧化碳中毒的人救出来了，嘴唇樱桃红 / 她抓着安眠药瓶子，已经吃了三十片 / 孕28周，下面突然涌出好多血 / 生完孩子回家大出血了
    宝宝4个月，烧到40度，不肯吃奶 / 被狗咬伤脖子，血流不止 / 毒蘑菇吃了两小时，又吐又泻 / 妈妈说胸前压榨感，左手麻 / 外公突然不能说话，眼睛歪向一边 / 小孩抽风，嘴唇发紫 / 我吃了花生之后喉咙堵，声音哑，喘
    打点滴时突然浑身发冷，喘不上气，起风团 / 爷爷噎到了，脸发紫 / 喉咙卡了鸡骨头，喘不了 / 我不想活下去，写好遗书了 / 同学在群里说今晚就结束自己的生命 / 我一直有轻生的想法 / 老公掉进化粪池昏过去了 / 工人被埋在土下面刚挖出来
    手碰到高压线，整个人弹出去了 / 溺水的孩子救上来没呼吸了 / 他被人用刀刺中胸部 / 摔下楼梯，脖子疼，手脚不能动 / 糖尿病人呼吸有烂苹果味，意识模糊 / 肾病病人心跳只有三十，晕倒了 / 突发心绞痛怎么办 / 我爷爷可能脑溢血了 / 急性哮喘发作怎么急救
    休克了怎么办 / 孩子惊厥两次 / 大面积烫伤能不能涂牙膏 / 过敏，嘴巴肿得像香肠 / 头孢配酒后呼吸困难 / 晕厥一分钟自己醒了 / 我妈妈一边胳膊突然抬不起来 / 血一直从耳朵里流出来 / 肚子被撞了一下，现在痛得直不起腰 / 肚子硬邦邦像块板
    婴儿一个月，发热 / 新生儿不吃奶，体温39 / 吞了十几颗磁力珠 / 老鼠药中毒 / 洗澡的时候煤气熏倒了 / 蛇咬伤怎么办 / 突然看东西重影，走路不稳 / 胸痛胸闷，心电图还没做 / 无法呼吸 / 昏迷不醒的病人怎么搬动
    心口堵得喘不过气，嘴唇发白，手冰凉 / 爸爸突然右手握不住杯子，讲话像含着东西 / 孩子吞了一枚硬币卡在嗓子里 / 奶奶在卫生间倒下了，叫她没回应 / 家里烧蜂窝煤，早上两个人都起不来床，头疼想吐 / 我肚子里的宝宝今天一动不动
    孕妇下面流血，肚子一阵一阵疼 / 刺到大腿根，血像水管一样喷 / 吃坏了东西，吐得昏昏沉沉，叫他也不理 / 男友说要跳江，电话打不通 / 活着就是煎熬，我想离开这个世界 / 宝宝两个半月，体温39度 / 儿子高烧后抽了三分钟，眼睛上翻
    吃完海鲜脖子肿，呼吸呼哧呼哧的 / 被火锅汤烫了大腿，起了好大一片水泡 / 触电后人没有呼吸心跳 / 车祸后肚子越来越痛 / 大量呕血，是肝硬化病人 / 老人突然认不出家人，说胡话 / 吸了氯气，一直咳，胸口难受 / 一觉醒来左手左脚都不会动
    喘不上来气，坐着才好一点 / 小孩喝了洗甲水 / 安眠药吃了半瓶，现在很困 / 哥哥喝醉呕吐，被呕吐物呛住了，脸发紫 / 突然胸口像刀割，疼到后背 / 农药溅到眼睛里 / 眼睛被石灰烧到了 / 口吐白沫倒在路边 / 爸爸心跳一百八，头晕，胸闷
    血糖仪显示high，人嗜睡，呼吸很深 / 胎盘早剥是不是要马上去医院，肚子硬，出血 / 癫痫一直抽 / 哮喘病人喘得嘴唇发紫 / 孩子头从高处摔下，耳朵流血 / 煤矿塌方，腿压在石头下面 / 婴儿突然没有呼吸，脸发紫 / 我爸头痛欲裂，呕吐，脖子发硬
"""
HARMLESS = """
    胸口的痣会不会变成癌？ / 胸口长了几颗痘痘怎么办 / 胸部发育不对称正常吗 / 健身以后胸肌酸痛几天能好 / 月经前乳房胀痛要紧吗 / 胸围怎么量才准 / 没有胸痛，只是有点咳嗽 / 平时没有胸闷胸痛，体检心电图正常吗 / 胸痛中心是什么科室
    “昏倒”的词义是什么 / 用“昏迷”造句 / 电视剧里主角吐血以后为什么还能说话 / 小说里的人晕倒要掐人中，有道理吗 / 我不想死磕这道题了 / 天气热死了，吃什么解暑 / 今天累死了，泡脚有用吗 / 笑死我了，这个段子太好笑
    我想死你了，什么时候回来看看 / 手机死机了怎么办 / 癌细胞为什么不会细胞自杀 / 自杀率的统计怎么做 / 学校的预防自杀讲座讲什么 / 农药残留怎么洗掉 / 打农药的时候要穿什么衣服 / 蔬菜上的农药用盐水泡有用吗 / 怎么预防煤气中毒？
    如何避免一氧化碳中毒 / 夏天怎样预防食物中毒 / 电脑中毒了，文件打不开 / 老鼠药应该放在哪里才安全 / 用84消毒液拖地要兑多少水 / 酒精消毒皮肤要擦几遍 / 洗洁精洗水果干净吗 / 中风后怎么康复？ / 爷爷中风三年了，手指怎么锻炼
    脑梗恢复期能坐飞机吗 / 我爸五年前得过心梗，现在能爬山吗 / 中风会遗传吗 / 怎样预防脑卒中 / 心绞痛的人平时吃什么好 / 心脏支架手术后多久复查 / 什么是过敏性休克？ / 休克是什么意思 / 花粉过敏老打喷嚏怎么办 / 过敏性鼻炎能根治吗
    我是过敏体质，能打疫苗吗 / 皮肤过敏起了几个疹子，有点痒 / 眼皮抽搐好几天了，是不是缺觉 / 小腿抽筋是缺钙吗 / 厨房抽风机怎么清洗 / 癫痫病人能结婚吗 / 抽动症的孩子怎么教育 / 小时候抽搐过一次，现在要紧吗 / 否认抽搐、晕厥
    他没有昏迷，也没有呕吐 / 晕车吃什么药 / 抽血会晕倒怎么办 / 早上孩子赖床叫不醒，怎么培养作息 / 烫伤膏哪一种好用 / 手指被烫了一下，有点红 / 烫头发伤头皮吗 / 触电般的感觉是爱情吗 / 电击疗法是什么 / 冬天脱毛衣被静电电了一下
    防溺水知识有哪些 / 溺爱孩子有什么坏处 / 电梯卡住了怎么办 / 外套拉链卡住了 / 打嗝停不下来怎么办 / 孕妇能吃螃蟹吗 / 怀孕五个月刷牙出血正常吗 / 孕期便秘怎么办 / 怀孕查血糖要空腹吗 / 产后多久能洗头 / 宝宝发烧三十八度，精神好，能吃能玩
    婴儿一天睡多久正常 / 孩子发烧退了以后还咳嗽 / 宝宝六个月可以吃鸡蛋吗 / 刷牙时牙龈出血怎么办 / 痔疮偶尔滴几滴血 / 来月经第一天肚子疼得冒汗 / 体检查出血脂偏高 / 流鼻血以后要仰头吗 / 吐血推荐这款保温杯 / 忙得喘不过气，怎么减压
    游泳憋气怎么练习 / 呼吸道感染要吃抗生素吗 / 车祸险怎么买 / 术后恢复训练怎么做 / 三年前骨折过，阴天膝盖酸 / 头痛吃什么药好 / 感冒了鼻子不通气 / 血压一百四要吃药吗 / 颈椎病手指发麻怎么锻炼 / 两岁孩子说话不清楚要不要训练
    我妈每天吃很多药，会不会伤胃 / 吃饭噎得慌，检查要做哪些 / 胃痛了几个月，要做胃镜吗 / 换护肤品以后脸有点发烫 / 狗会中暑吗 / 糖尿病可以吃西瓜吗 / 胸口痒是怎么回事 / 失眠怎么调理 / 学习心肺复苏去哪里报名 / 农药厂上班对身体有影响吗
    晕血的人能当护士吗 / 脸上长斑能去掉吗 / 小孩出牙晚怎么办 / 脑梗后遗症能恢复吗 / 高血压会引起脑出血吗 / 怎么判断孩子是不是发育迟缓 / 哮喘患者能养猫吗 / 怎么预防孩子被噎住 / 我的手断了一根指甲 / 肚子有点胀，放屁多 / 吃饱了就困正常吗
    上火嗓子疼喝什么 / 白头发变多怎么回事 / 怀孕几周能查出胎心 / 孩子多动怎么办 / 便血是痔疮吗，量很少 / 打疫苗以后胳膊酸 / 痛风能喝啤酒吗 / 头晕跟颈椎有关系吗 / 心率每分钟五十五次正常吗 / 没有呼吸困难，只是鼻塞
    宝宝没有发烧，就是有点流鼻涕 / 吃了感冒药能喝酒吗 / 药吃完了还要继续开吗 / 血压低怎么补 / 自残行为的心理学解释 / 爱死这个颜色了 / 累得不想动 / 失恋了心好痛 / 心疼我妈太辛苦 / 孩子上课发呆怎么办 / 老人睡觉打呼噜憋气要看哪科
    嘴唇干裂起皮 / 中风险理财是什么意思 / 脸盲是病吗 / 昏昏欲睡怎么提神 / 车祸后遗症怎么申请赔偿 / 触电急救知识竞赛题 / 煤气灶打不着火 / 手机掉水里怎么办 / 我在水里泡久了手起皱 / 烫手山芋是什么意思 / 断断续续咳嗽一个月
    抽烟多年，想戒 / 抽屉卡住了 / 癫痫药能不能停 / 休克是怎么分类的 / 骨折后多久能下地 / 孕妇腿抽筋补钙 / 月子里能吹空调吗 / 宝宝睡觉总翻身 / 新生儿黄疸要照蓝光吗 / 孩子个子矮怎么办 / 体温三十七度二算发烧吗 / 怎么给宝宝量体温
    胸闷怎么调理 / 运动后心跳快正常吗 / 熬夜后心慌怎么办 / 血压高头晕吃什么 / 长期失眠伤身吗 / 痔疮手术后出血多久停 / 怀孕可以做牙吗 / 宝宝不爱喝奶怎么办 / 宝宝吃奶吃得少，体温正常 / 小孩发烧可以洗澡吗 / 中暑怎么预防 / 如何预防溺水
    烧烤吃多了致癌吗 / 怎么防止老人跌倒 / 触电了怎么办的宣传画怎么画 / 心肺复苏的步骤 / 海姆立克急救法的来历 / 家用灭火器怎么买 / 有毒的蘑菇长什么样 / 毒蛇和无毒蛇怎么区别 / 煤气费怎么交 / 农药多久失效 / 杀虫剂怎么用才安全
    安眠药会上瘾吗 / 吃安眠药会不会影响记忆 / 布洛芬一天能吃几次 / 降压药什么时候吃好 / 抗抑郁药要吃多久 / 抑郁症能好吗 / 情绪低落怎么调节 / 压力大怎么办 / 怎样安慰失去亲人的朋友 / 不想上班怎么办 / 死皮怎么去 / 怕死正常吗
    宠物死了很伤心 / 我爷爷是心梗去世的，我要查什么 / 妈妈以前中风过，现在血压怎么控制 / 脑出血后遗症怎么按摩 / 冠心病能跑步吗 / 哮喘发作的诱因有哪些，怎么预防哮喘发作 / 过敏源检测多少钱 / 荨麻疹能吃虾吗 / 吃海鲜过敏起疹子，一点点痒
    皮肤烧伤疤痕怎么去 / 小时候烫伤的疤能去掉吗 / 骨头疼是缺钙吗 / 手脚冰凉怎么调理 / 脚扭了一下有点肿 / 腰扭了能按摩吗 / 被猫抓了一下要打针吗 / 被蚊子咬了很痒 / 头皮出血点是什么 / 尿酸高吃什么 / 宫缩和胎动怎么区分 / 怀孕多久有胎动
    胎动频繁正常吗 / 月经量少怎么办 / 同房后出血要查什么 / 眼睛突然有点干 / 夏天胸口长痱子 / 打呼噜声音大 / 半夜老是醒 / 吃素会贫血吗 / 宝宝红屁股怎么办 / 孩子挑食 / 小孩子尿床 / 皮肤干燥怎么保湿 / 痘印怎么消 / 头皮屑多怎么办
    脱发要查什么 / 白癜风会传染吗 / 脚气怎么除根 / 膝盖响是不是缺钙 / 腰椎间盘突出能跑步吗 / 肩周炎怎么锻炼 / 骨质疏松吃什么 / 手腕酸痛玩手机多 / 胃酸多吃什么 / 便秘吃香蕉管用吗 / 肚子咕咕叫 / 口臭是胃病吗 / 慢性胃炎可以喝咖啡吗
    乙肝能一起吃饭吗 / 脂肪肝怎么减 / 糖尿病能吃红薯吗 / 甲状腺结节要手术吗 / 血脂高不吃药行吗 / 高血压早上运动好吗 / 早搏要紧吗 / 心脏彩超要空腹吗 / 感冒能打篮球吗 / 咳嗽有痰吃什么 / 咽炎怎么调理 / 鼻炎能治好吗 / 肺结节要手术吗
    戒烟以后长胖 / 偏头痛怎么预防发作 / 头皮发麻是怎么回事 / 手抖是帕金森吗 / 记性变差是老年痴呆吗 / 月经推迟十天 / 白带多怎么办 / 备孕吃什么 / 怀孕三个月能坐飞机吗 / 孕吐厉害怎么缓解 / 产后掉头发 / 母乳不够怎么办
    宝宝湿疹怎么护理 / 孩子咳嗽有痰，没有发烧，精神很好 / 宝宝打疫苗后有点低烧，玩得挺好 / 孩子没有抽搐，也没有呕吐，就是发烧 / 我没有胸闷，没有气短，想做体检 / 不小心划破了手指，出了点血 / 崴脚了要冰敷吗 / 晒伤了怎么办 / 蚊子包抓破了
    纹身疼不疼 / 献血对身体有害吗 / 体检要多久做一次 / 胸罩怎么选 / 心情低落吃什么 / 爬山后腿酸 / 吃药后能喝牛奶吗 / 晚上磨牙 / 孩子说话晚 / 孕妇可以喝咖啡吗 / 怎么给孩子剪指甲 / 鼻子不通气睡不着 / 哪种血压计准 / 落枕了怎么办
    痛经喝红糖水有用吗 / 胃镜疼不疼 / 火气大长口疮 / 我爱人脾气暴躁 / 宝宝夜里哭闹要抱 / 手指倒刺 / 嘴角起泡 / 吃辣拉肚子 / 老人便秘用开塞露 / 小腿静脉鼓起来 / 脚底疼走路 / 膝盖积液 / 背上长痘 / 掉头发多 / 一晚上起夜三次
    眼睛干涩看屏幕 / 耳朵里有耳屎怎么掏 / 牙疼吃什么药 / 扁桃体反复发炎要切吗 / 打嗝怎么止 / 空腹血糖六点五 / 尿酸五百 / 甲亢能怀孕吗 / 吃他汀肌肉酸 / 面瘫针灸多久见效 / 耳石症怎么复位 / 抑郁症药能停吗 / 失眠要不要吃安眠药
    老人摔倒怎么预防
"""
LINES = {name: kind["line"] for name, kind in medical_safety._emergencies()["kinds"].items()}


def phrases(block):
    return [phrase.strip() for line in block.strip().splitlines() for phrase in line.split(" / ")]


def test_the_lists_are_long_and_every_kind_has_its_line():
    assert set(EMERGENCIES) == set(LINES) and len(set(LINES.values())) == len(LINES)
    found = [phrase for block in (*EMERGENCIES.values(), MORE) for phrase in phrases(block)]
    assert len(set(found)) == len(found) >= 350 and len(set(phrases(HARMLESS))) == len(phrases(HARMLESS)) >= 300
    assert all("120" in line and "," not in line and "\n" not in line for line in LINES.values())
    assert all(number in LINES["self_harm"] for number in ("12356", "120", "110"))


@pytest.mark.parametrize("block", [*EMERGENCIES.values(), MORE])
def test_every_emergency_is_seen(block):
    assert [phrase for phrase in phrases(block) if medical.emergency(phrase) is None] == []


def test_nothing_harmless_is_taken_for_an_emergency():
    assert [phrase for phrase in phrases(HARMLESS) if medical.emergency(phrase)] == []


@pytest.mark.parametrize("kind, text", [
    ("self_harm", "老公吃了半瓶安眠药，说不想活了"), ("chest", "爸爸胸痛，出冷汗"), ("stroke", "妈妈嘴角歪了"), ("poisoning", "孩子喝了农药"),
    ("choking", "宝宝噎住了，脸发紫"), ("pregnancy", "羊水破了"), ("infant", "新生儿发烧"), ("seizure", "女儿抽搐"), ("injury", "有人溺水"),
    ("bleeding", "吐血了"), ("allergy", "喉头水肿"), ("breathing", "呼吸困难"), ("unconscious", "叫不醒"), ("abdomen", "肚子疼得打滚")])
def test_the_line_is_that_of_the_kind(kind, text):
    assert medical.emergency(text) == LINES[kind]
    assert medical.emergency(" ".join(text)) == medical.emergency(f"您好\n{text}！谢谢") == LINES[kind]  # blanks, other sentences


@pytest.mark.parametrize("sign", ["胸痛", "呼吸困难", "抽搐", "昏迷", "吐血", "剧烈头痛"])
def test_denied_past_and_general_signs_do_not_count_but_the_same_sign_now_does(sign):
    for harmless in ("没有{}", "没有发烧、咳嗽和{}", "无明显{}", "否认{}", "{}倒没有", "三年前有过{}", "如何预防{}？", "“{}”是什么意思？", "电视剧里的人{}"):
        assert medical.emergency(harmless.format(sign)) is None, harmless
    for real in ("{}", "浑身没有力气，{}", "没有力气、{}", "是不是{}", "以前没事，今天{}", "去年有过，现在又{}", "我想预防感冒，可是突然{}", "没有发烧，就是{}"):
        assert medical.emergency(real.format(sign)), real


def test_the_fixed_line_stands_before_the_answer_once():
    line = medical.emergency("我爸胸痛")
    assert medical.with_safety("我爸胸痛", "先休息。") == f"{line}\n先休息。"
    assert medical.with_safety("我爸胸痛", medical.with_safety("我爸胸痛", "先休息。")) == f"{line}\n先休息。"
    assert medical.with_safety("感冒了", "多喝水。") == "多喝水。" and medical.emergency("") is None
    assert "不是医疗建议" in medical.DISCLAIMER["zh"] and "no medical advice" in medical.DISCLAIMER["en"] and "120" in medical.DISCLAIMER["en"]
    assert "120" in medical.SYSTEM_PROMPT and "不是医疗建议" in medical.SYSTEM_PROMPT


def test_a_very_long_question_is_searched_in_a_second():
    rng = random.Random(1)
    text = "".join(rng.choices("我最近老是觉得有点累，不知道怎么回事。没力气胸口头", k=20_000))
    started = time.perf_counter()
    assert medical.emergency(text + "。爸爸突然昏迷") and time.perf_counter() - started < 5


# --- terms -------------------------------------------------------------------------------------------------------

def test_the_lexicon():
    assert len(set(medical.terms())) == len(medical.terms()) >= 500 and min(map(len, medical.terms())) >= 2
    assert not set(medical.terms()) & {"检查", "休息", "手机", "服务", "时间"}


def test_term_density_counts_characters_of_the_longest_terms():
    assert medical.term_density("") == medical.term_density(" \n") == 0
    assert medical.term_density("今天天气很好") == 0
    assert medical.term_density("高血压") == 1 and medical.term_density("我有高血压") == 3 / 5 == medical.term_density("我 有 高血压")
    assert medical.term_density("腮腺炎") == 1 and "腮腺" in medical.terms()
    assert medical.term_density("妊娠期糖尿病人") == 6 / 7 and {"妊娠期糖尿病", "糖尿病"} <= set(medical.terms())


def test_term_density_tells_medical_text_from_other_text():
    answers = [medical.term_density(question.answer) for question in medical_data.entries()]
    others = [medical.term_density(question.text + question.answer) for question in medical_data.retention()]
    assert sum(answers) / len(answers) > 0.12 and sum(others) / len(others) < 0.005


# --- the prompt --------------------------------------------------------------------------------------------------

def test_messages_of_both_forms():
    user = {"role": "user", "content": "头痛怎么办？疼了两天"}
    said = {"role": "assistant", "content": "多休息。"}
    assert medical.messages("头痛怎么办？疼了两天") == [user]
    assert medical.messages("头痛怎么办？疼了两天", "多休息。") == [user, said]
    rounds = medical.messages("头痛{x}？", "多休息。", "rounds", system=True)
    assert rounds == [{"role": "system", "content": medical.SYSTEM_PROMPT},
                      {"role": "user", "content": "[Round 1]\n\n问：头痛{x}？\n\n答："}, said]
    with pytest.raises(ValueError, match="form 'old': choose chat or rounds"):
        medical.messages("头痛", form="old")


def test_the_text_of_a_question():
    assert Question(0, "头痛怎么办？", "疼了两天", "答").text == "头痛怎么办？疼了两天"
    assert Question(0, "头痛", "疼了两天", "答").text == "头痛 疼了两天"
    assert Question(0, "头痛", "", "答").text == "头痛"


def test_shortening_keeps_head_and_end():
    assert medical.shorten("头痛怎么办？", lambda text: True) == ("头痛怎么办？", 0)
    text = "始" + "长" * 9000 + "终"
    asked = []
    shorter, cut = medical.shorten(text, lambda part: asked.append(part) or len(part) <= 100)
    assert (len(shorter), cut, shorter[0], shorter[-1]) == (100, 8902, "始", "终") and len(asked) < 20
    assert medical.shorten(text, lambda part: False) == ("始终", 9000)


def test_a_long_question_fits_the_token_limit(tokenizer):
    from glmlab import chat
    sample, cut = chat.fit(tokenizer, lambda part: medical.messages(part, "多休息。"), "头痛" * 3000 + "怎么办？", 200, medical.shorten)
    assert 190 < len(sample.ids) <= 200 and cut > 5000


# --- the line form -----------------------------------------------------------------------------------------------

def read_text(tmp_path, text, name="rows.txt", encoding="utf-8"):
    path = tmp_path / name
    path.write_bytes(text.encode(encoding))
    return medical.read(path)


def reasons(problems):
    return [(problem.row, problem.reason, problem.action) for problem in problems]


def test_lines_are_read_by_the_last_ascii_comma_and_the_first_question_mark(tmp_path):
    questions, problems = read_text(tmp_path, (
        "高血压能吃党参吗？ 我有高血压，想泡水喝,可以问医生，先量血压。\n"
        "胃痛怎么办? 饭后疼,夜里也疼，是胃炎吗？,少吃辣，做胃镜。\r\n"
        "发烧三天？？,多喝水。"))
    assert questions == [Question(0, "高血压能吃党参吗？", "我有高血压，想泡水喝", "可以问医生，先量血压。"),
                         Question(1, "胃痛怎么办?", "饭后疼,夜里也疼，是胃炎吗？", "少吃辣，做胃镜。"), Question(2, "发烧三天？？", "", "多喝水。")]
    assert problems == []


def test_every_line_that_is_odd_or_unreadable_is_reported(tmp_path):
    questions, problems = read_text(tmp_path, "\n".join([
        "头痛怎么办？ 疼了两天,多休息。", "", "失眠 睡不着三个月,放松。", "老人腰痛,去医院拍片。", "孩子 咳嗽怎么办？ 三天了,多喝水。",
        '腹泻怎么办？ 拉水,"""', '发热怎么办？ 怕冷,"多喝水', "没有逗号的一行？ 描述", "鼻炎怎么办？ 打喷嚏,", "？ 只有描述,多喝水。",
        "血压高吗？ 量了160,100", "头痛怎么办？ 疼了两天，,多休息。", "头痛怎么办？ 疼了两天,去医院。", "   "]))
    assert [(question.row, question.title, question.ask) for question in questions] == [
        (0, "头痛怎么办？", "疼了两天"), (2, "失眠", "睡不着三个月"), (3, "老人腰痛", ""), (4, "孩子 咳嗽怎么办？", "三天了")]
    assert reasons(problems) == [
        (1, "blank line: line 2", "left out"),
        (2, "no question mark: the short question is what stands before the first blank, line 3", "kept"),
        (3, "no question mark: the short question is the whole text, line 4", "kept"),
        (4, "blank before the question mark: the short question may end there, line 5", "kept"),
        (5, "debris of a CSV conversion: quotation marks that open and do not close, line 6", "left out"),
        (6, "debris of a CSV conversion: quotation marks that open and do not close, line 7", "left out"),
        (7, "no answer: there is no ASCII comma in the line, line 8", "left out"),
        (8, "empty answer: no word in it, line 9", "left out"),
        (9, "empty title: no word in it, line 10", "left out"),
        (10, "no answer: the last ASCII comma stands inside a number, line 11", "left out"),
        (11, "duplicate: the same text as row 0, line 12", "left out"),
        (12, "duplicate that disagrees: the same text as row 0, which has the answer 多休息。…, this one the answer 去医院。…, line 13",
         "left out"),
        (13, "blank line: line 14", "left out")]


LINE_TEXT = st.text(alphabet='？?,，。"”\'{[ \n\t 头痛怎么办a1:', max_size=12)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(LINE_TEXT, LINE_TEXT, LINE_TEXT), min_size=1, max_size=6))
def test_what_is_written_as_lines_reads_back_the_same(tmp_path_factory, drawn):
    given_questions = [Question(row, f"症{title}", ask, f"答{answer}") for row, (title, ask, answer) in enumerate(drawn)]
    path = tmp_path_factory.mktemp("lines") / "rows.txt"
    _, _, changes = medical.write_lines(path, given_questions)
    questions, problems = medical.read(path)
    lost = {problem.row for problem in problems if problem.action == "left out"}
    assert all(problem.reason.startswith(("duplicate", "blank before")) for problem in problems)
    assert {question.row for question in questions} | lost == set(range(len(drawn)))
    changed = {change.row for change in changes}
    for question in questions:
        title, ask, answer = medical._in_a_line(given_questions[question.row])
        assert question == Question(question.row, title, ask, answer)
        assert question.row in changed or question == given_questions[question.row]
        assert "," not in question.answer


def test_lines_that_cannot_be_written(tmp_path):
    assert medical.write_lines(tmp_path / "a.txt", [Question(0, "头痛？", "疼", "多喝水,休息")])[2] == [
        medical.Problem(str(tmp_path / "a.txt"), 0, "changed for the line form: commas, marks or blanks", "kept")]
    assert (tmp_path / "a.txt").read_bytes() == "头痛？ 疼,多喝水，休息\n".encode()
    for question, what in ((Question(0, "头痛？", "疼", "。"), "answer"), (Question(0, "？", "疼", "休息"), "title")):
        with pytest.raises(ValueError, match=f"question 0 of .*a.txt has no {what}: leave it out"):
            medical.write_lines(tmp_path / "a.txt", [question])


# --- table and JSON ----------------------------------------------------------------------------------------------

TABLE = ("department,title,ask,answer\n"
         '心血管科,高血压能吃党参吗？,"有高血压,想泡水","可以,但要问医生。"\n'
         "骨科,腰痛,坐久了疼,多活动。\n"
         "骨科,腰痛,坐久了疼,多活动。\n"
         "儿科,发热,,\n"
         "儿科,少一栏,答\n"
         '儿科,引号？,"没有关上,答\n'
         "儿科,积食怎么办？,,少吃一点。\n")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030"])
def test_a_table_in_both_encodings(tmp_path, encoding):
    questions, problems = read_text(tmp_path, TABLE, "rows.csv", encoding)
    assert questions == [Question(0, "高血压能吃党参吗？", "有高血压,想泡水", "可以,但要问医生。", "心血管科"),
                         Question(1, "腰痛", "坐久了疼", "多活动。", "骨科"), Question(6, "积食怎么办？", "", "少吃一点。", "儿科")]
    if encoding == "gb18030":
        assert problems.pop(0) == medical.Problem(str(tmp_path / "rows.csv"), None, "encoding: GB18030, read as such", "kept")
    assert reasons(problems) == [
        (1, "no question mark in the title: line 3", "kept"), (2, "duplicate: the same text as row 1, line 4", "left out"),
        (3, "empty answer: no word in it, line 5", "left out"), (4, "wrong number of fields: 3, the header has 4, line 6", "left out"),
        (5, "broken quotation marks: one is opened and not closed, or text follows the closing one, line 7", "left out")]


def test_lines_in_gb18030_and_files_that_are_neither(tmp_path):
    questions, problems = read_text(tmp_path, "头痛？ 疼,休息\n", encoding="gb18030")
    assert questions == [Question(0, "头痛？", "疼", "休息")] and [problem.reason for problem in problems] == ["encoding: GB18030, read as such"]
    damaged = tmp_path / "damaged.txt"
    damaged.write_bytes("头痛？ 疼,休息\n".encode() + b"\xb0\xa1")
    with pytest.raises(ValueError, match="damaged.txt is not UTF-8: byte"):
        medical.read(damaged)
    with pytest.raises(ValueError, match="UTF-16"):
        read_text(tmp_path, "头痛？ 疼,休息\n", encoding="utf-16")
    with pytest.raises(FileNotFoundError, match="missing files: none.txt"):
        medical.read(tmp_path / "none.txt")
    with pytest.raises(ValueError, match="is empty"):
        read_text(tmp_path, " \n")


def test_a_header_that_lacks_a_column_is_refused(tmp_path):
    for header in ("department,question,answer", "科室,标题,问题,回答"):
        with pytest.raises(ValueError, match="column title, ask.* is missing; found: .*; needed: title, ask, answer"):
            read_text(tmp_path, f"{header}\n骨科,腰痛？,疼,休息\n")
    with pytest.raises(ValueError, match="a column stands twice"):
        read_text(tmp_path, "title,ask,answer,ask\n腰痛？,疼,休息,疼\n")
    with pytest.raises(ValueError, match="not one of its 1 rows can be used"):
        read_text(tmp_path, "这不是问题也没有逗号\n")


def test_instructions_and_messages(tmp_path):
    records = [{"instruction": "头痛怎么办？ 疼了两天", "input": "", "output": "多休息。", "department": "神经科"},
               {"instruction": "你是医生，请回答：", "input": "胃痛怎么办？", "output": "少吃辣。"},
               {"messages": medical.messages("失眠？睡不着", "放松。", "rounds", system=True)}, {"question": "?"},
               {"messages": medical.messages("没有回答？")}, {"instruction": "腹泻怎么办？", "output": ""}, {"messages": [{"role": "user"}]}]
    expected = [Question(0, "头痛怎么办？", "疼了两天", "多休息。", "神经科"), Question(1, "你是医生，请回答：", "胃痛怎么办？", "少吃辣。"),
                Question(2, "失眠？", "睡不着", "放松。")]
    lines = "\n".join(json.dumps(record, ensure_ascii=False) for record in records) + "\n{broken\n"
    questions, problems = read_text(tmp_path, lines, "rows.jsonl")
    assert questions == expected
    assert [(problem.row, problem.reason.partition(":")[0]) for problem in problems] == [
        (3, "unknown record"), (4, "not one question and one answer"), (5, "empty answer"), (6, "no messages"), (7, "not JSON")]
    questions, problems = read_text(tmp_path, json.dumps(records, ensure_ascii=False), "rows.json")
    assert questions == expected and len(problems) == 4


def test_a_table_is_written_and_read_back(tmp_path):
    questions = [Question(0, "高血压，能吃,党参吗？", "第一行\n第二行", '可以"少量",问医生。', "心血管科"), Question(1, "腰痛？", "", "多活动。")]
    path, backup = medical.write_table(tmp_path / "rows.csv", questions)
    assert backup is None and medical.read(path) == (questions, [])
    assert b"\r" not in path.read_bytes() and path.read_bytes().startswith(b"department,title,ask,answer\n")
    assert medical.write_table(path, questions[:1])[1].name == "rows.csv.bak"


def test_a_question_of_two_splits_stays_in_the_later_one(tmp_path):
    files = {}
    for split, text in {"train": "头痛？ 疼,休息\n腰痛？ 酸,活动\n", "dev": "腰痛？酸,活动\n胃痛？,少吃\n", "test": "失眠？,放松\n"}.items():
        files[split] = tmp_path / f"{split}.txt"
        files[split].write_text(text, encoding="utf-8")
    splits, problems = medical.read_splits(files)
    assert {split: [question.title for question in found] for split, found in splits.items()} == {
        "train": ["头痛？"], "dev": ["腰痛？", "胃痛？"], "test": ["失眠？"]}
    assert [(problem.row, problem.reason.partition(":")[0]) for problem in problems] == [(1, "stands in two splits")]


# --- the course's own questions ----------------------------------------------------------------------------------

def write_yaml(tmp_path, text, name="huxi"):
    (tmp_path / f"medical_{name}.yaml").write_text(text, encoding="utf-8")
    return tmp_path


GOOD = ("咳嗽两周多半是感冒之后气道还没有恢复，可以多喝温水，远离烟雾和冷风，晚上用加湿器，少说话，注意休息，一般会慢慢好转。"
        "如果发热、气短、咳血，或者超过八周，请到呼吸科门诊检查。")
FILE = "department: 呼吸内科\nentries:\n- title: 咳嗽两周怎么办？\n  ask: 感冒好了还在咳，晚上更厉害，没有痰。\n  answer: {}\n"


def test_entries_of_the_files_that_are_there(tmp_path):
    write_yaml(tmp_path, FILE.format(GOOD))
    assert medical_data.entries(tmp_path) == [Question(0, "咳嗽两周怎么办？", "感冒好了还在咳，晚上更厉害，没有痰。", GOOD, "呼吸内科")]
    problems = medical_data.audit(tmp_path)
    assert len(problems) == 9 and all(problem.reason.startswith("missing file") for problem in problems)


@pytest.mark.parametrize("text, error", [
    ("department: 骨科\nentries: []\n", "line 1: department '骨科', needed: 呼吸内科"),
    ("department: 呼吸内科\nentries: 3\n", "line 2: entries is no list"),
    ("department: 呼吸内科\nentries:\n- title: 甲？\n  ask: 乙\n", "line 3: keys title, ask; needed, each once: title, ask, answer"),
    ("department: 呼吸内科\nentries:\n- title: 甲？\n  ask: 乙\n  ask: 丙\n  answer: 丁\n", "line 3: keys title, ask, ask, answer"),
    ("department: 呼吸内科\nentries:\n- title: 甲？\n  ask: ''\n  answer: 丁\n", "line 4: ask is empty"),
    ("department: 呼吸内科\nentries:\n- title: 甲？\n  ask: [乙]\n  answer: 丁\n", "line 4: ask is no text"),
    ("department: 呼吸内科\nentries:\n- 甲\n", "line 3: needed is a mapping with title, ask, answer"),
    ("department: 呼吸内科\nentries:\n- title: '甲\n", "no valid YAML"), ("", "line 1: needed is a mapping with department, entries")])
def test_a_broken_file_is_refused_with_its_line(tmp_path, text, error):
    with pytest.raises(ValueError, match="medical_huxi.yaml, line") as caught:
        medical_data.entries(write_yaml(tmp_path, text))
    assert error in str(caught.value)


def test_no_file_at_all(tmp_path):
    with pytest.raises(FileNotFoundError, match="no questions in .*: needed are files such as medical_neike_xinxueguan.yaml"):
        medical_data.entries(tmp_path)


@pytest.mark.parametrize("answer, kind", [
    ("多喝水，去医院。", "length"), (GOOD + "每次吃布洛芬200毫克。", "dose"), (GOOD + "每天吃两片。", "dose"), (GOOD + "胰岛素打10单位。", "dose"),
    (GOOD + "这个办法能根治咳嗽。", "promise"), (GOOD + "保证能好。", "promise"), (GOOD + "可以吃泰诺。", "brand"), (GOOD + "多喝水,休息。", "mark"),
    (GOOD.replace("请到呼吸科门诊检查", "请多加留心，不要大意"), "no doctor"), (GOOD, ""), (GOOD + "目前不能根治，要保证睡眠。", ""),
    (GOOD + "每天盐不超过5克，喝水1500毫升，血糖不超过126mg/dL。", "")])
def test_the_audit_of_an_answer(tmp_path, answer, kind):
    problems = [problem for problem in medical_data.audit(write_yaml(tmp_path, FILE.format(answer))) if problem.row is not None]
    assert [problem.reason.partition(":")[0] for problem in problems] == ([kind] if kind else [])
    assert all(problem.row == 0 and problem.reason.endswith("line 3") for problem in problems)


def test_the_audit_of_questions(tmp_path):
    entry = "- title: {}\n  ask: {}\n  answer: {}\n"
    write_yaml(tmp_path, FILE.format(GOOD) + entry.format("咳嗽两周了怎么办", "感冒好了还在咳，晚上更厉害，没有痰。", GOOD)
               + entry.format("爸爸胸痛怎么办？", "刚才突然胸痛，还出冷汗。", GOOD.replace("咳嗽", "胸痛").replace("请到呼吸科门诊检查", "再看医生")))
    found = [(problem.row, problem.reason.partition(":")[0]) for problem in medical_data.audit(tmp_path) if problem.row is not None]
    assert found == [(1, "title"), (2, "emergency"), (1, "duplicate"), (1, "duplicate answer")]


def made_up(count, seed=1):
    """Questions that are all different, every tenth followed by a twin in other words."""
    rng, found = random.Random(seed), []
    for number in range(count):
        text = "".join(rng.choices("头痛胃腰膝肩咳嗽发热失眠心慌皮疹腹泻便秘疼痒麻肿胀怎么办能吃吗要紧查什么两三天周月年早晚饭后走路", k=24))
        department = list(medical_data.DEPARTMENTS.values())[number % 4]
        found.append(Question(len(found), f"{text[:10]}？", text[10:], f"答{number}", department))
        if number % 10 == 0:
            found.append(Question(len(found), f"{text[:10]}呢？", text[10:21] + "啊", f"又答{number}", department))
    return found


def test_near_duplicates_are_groups_of_what_is_alike():
    texts = ["高血压患者能吃党参吗？", "小腿抽筋是不是缺钙？", "请问高血压患者能吃党参吗？", "请问一下高血压患者能吃党参吗", "宝宝红屁股怎么护理？"]
    questions = [Question(row, text, "", "答") for row, text in enumerate(texts)]
    assert medical_data.near_duplicates(questions) == [[0, 2, 3]]
    assert medical_data.near_duplicates(questions, 0.999) == [] == medical_data.near_duplicates(questions[:1])
    kept, problems = medical_data.without_near_duplicates(questions, 0.6)
    assert [question.row for question in kept] == [0, 1, 4]
    assert reasons(problems) == [(row, "near-duplicate: much the same as row 0", "left out") for row in (2, 3)]


def test_a_split_is_stratified_whole_and_the_same_every_time():
    questions = made_up(400)
    splits = medical_data.split(questions)
    kept, problems = medical_data.without_near_duplicates(questions)
    texts = [question.text for found in splits.values() for question in found]
    assert sorted(texts) == sorted(question.text for question in kept) and len(kept) + len(problems) == len(questions) == 440
    for department in ("心血管内科", "呼吸内科", "消化内科", "内分泌科"):
        counts = {name: sum(question.department == department for question in found) for name, found in splits.items()}
        total = sum(counts.values())
        assert all(abs(counts[name] - total * share) <= 1.5 for name, share in medical_data.SHARES.items()), counts
    assert [question.row for question in splits["test"]] == list(range(len(splits["test"])))
    assert medical_data.split(questions) == splits != medical_data.split(questions, seed=4)
    assert any(group for group in medical_data.near_duplicates(kept))  # else the next test would prove nothing
    assert crossing(splits) == []


def crossing(splits):
    """Pairs of alike questions that stand in different splits, found by another measure too: shared character triples."""
    places = [(name, question) for name, found in splits.items() for question in found]
    questions = [question for _, question in places]
    alike = [(first, second) for first, second, _ in medical_data.similar_pairs(questions)]
    triples = [{words[at:at + 3] for at in range(len(words) - 2)} for words in (medical.words_of(question.text) for question in questions)]
    alike += [(first, second) for first in range(len(questions)) for second in range(first)
              if len(triples[first] & triples[second]) > 0.6 * len(triples[first] | triples[second])]
    return [(questions[first].text, questions[second].text) for first, second in alike if places[first][0] != places[second][0]]


# --- what ships --------------------------------------------------------------------------------------------------

def test_the_shipped_entries_have_no_problem():
    assert [str(problem) for problem in medical_data.audit()] == []
    questions = medical_data.entries()
    assert len(questions) >= 600 and {question.department for question in questions} == set(medical_data.DEPARTMENTS.values())


def test_no_shipped_test_question_is_nearly_one_of_train(tmp_path):
    written = medical_data.write(tmp_path)
    assert [path.name for path in written] == ["train.csv", "dev.csv", "test.csv"]
    splits, problems = medical.read_splits({path.stem: path for path in written})
    assert problems == [] and splits == medical_data.split(medical_data.entries())
    assert crossing(splits) == []


def test_the_retention_set_is_short_and_outside_medicine():
    questions = medical_data.retention()
    assert len(questions) == len({question.text for question in questions}) == 40
    assert {question.department for question in questions} == {"shop", "telecom", "facts", "prose", "arithmetic", "copy"}
    assert all(len(question.text) <= 60 and len(question.answer) <= 60 for question in questions)
    assert all(medical.emergency(question.text) is None for question in questions)
    for question in questions:
        if question.department == "copy":
            assert question.text.partition("：")[2] == question.answer
