"""Plain words that keys and values of needles are made of: adjective + animal, and two things."""

ENGLISH_KEYS = (
    "amber bitter bold brave bright broken calm clever cold copper curious dark deep distant dusty early eager faint "
    "fancy fierce frozen gentle giant golden grand green happy hidden hollow honest humble hungry icy jolly lazy little "
    "lonely loud lucky marble mellow misty noisy pale patient plain polite proud purple quick quiet rapid red rusty "
    "secret sharp shiny silent silver simple sleepy smooth snowy",
    "badger bear beaver camel cobra crow deer dolphin dragon eagle falcon ferret finch fox frog gecko goat goose hare "
    "hawk hedgehog heron horse hyena jackal jaguar koala lemur leopard lion lizard llama magpie mole monkey moose moth "
    "mule newt octopus otter owl panda panther parrot pelican penguin pigeon pony puffin rabbit raven robin salmon seal "
    "shark snail spider squirrel swan tiger turtle walrus zebra",
)
ENGLISH_VALUES = (
    "apple autumn bamboo barley basalt bronze butter candle cedar cherry cinnamon clover coral cotton crystal desert "
    "diamond ember emerald feather forest garden ginger glacier granite harbor harvest honey ivory jasmine kettle "
    "lantern lemon linen maple meadow mint moon mountain ocean olive orange orchid paper pepper pine plum prairie rain "
    "river rose ruby salt sand shadow silk spring stone sugar summer sunset thunder velvet",
    "anchor arrow basket bell blanket boat bottle bridge brush bucket button cabin canvas castle chair chest clock cloud "
    "compass cradle crown drum engine fence fiddle flag flute fountain gate glove hammer helmet hinge island jacket jar "
    "key kite ladder lamp lock map mirror needle oven path pearl piano pillow pocket prism ribbon ring road rocket rope "
    "sail saddle shield ship shovel spoon table tower wagon wheel window",
)
CHINESE_KEYS = (
    "青铜 白银 黄金 红色 蓝色 绿色 紫色 黑色 白色 古老 年轻 勇敢 聪明 安静 快乐 忧伤 孤独 温柔 凶猛 巨大 微小 神秘 明亮 "
    "昏暗 寒冷 炎热 干燥 潮湿 遥远 附近 透明 坚硬 柔软 锋利 光滑 粗糙 甜美 苦涩 懒惰 勤劳 诚实 骄傲 谦虚 幸运 饥饿 疲倦 "
    "清醒 沉默 吵闹 优雅 笨拙 敏捷 缓慢 善良 狡猾 顽皮 严肃 热情 冷淡 华丽 朴素 飞翔 奔跑 沉睡",
    "老虎 狮子 大象 猴子 兔子 狐狸 山羊 绵羊 骆驼 野马 黄牛 水牛 公鸡 鸭子 天鹅 鸽子 麻雀 燕子 乌鸦 喜鹊 老鹰 孔雀 鹦鹉 "
    "企鹅 海豚 鲸鱼 鲨鱼 金鱼 鲤鱼 青蛙 乌龟 蜥蜴 蟒蛇 蜜蜂 蝴蝶 蜻蜓 蚂蚁 蟋蟀 蜘蛛 蜗牛 螃蟹 龙虾 章鱼 海星 熊猫 棕熊 "
    "豹子 豺狼 刺猬 松鼠 老鼠 花猫 小狗 河马 犀牛 斑马 羚羊 麋鹿 袋鼠 考拉 海狸 水獭 貂鼠 凤凰",
)
CHINESE_VALUES = (
    "苹果 香蕉 葡萄 樱桃 柠檬 石榴 荷花 菊花 梅花 玫瑰 茉莉 牡丹 竹林 松树 柳树 枫叶 高山 大海 河流 湖泊 沙漠 草原 森林 "
    "雪地 月光 阳光 星空 彩虹 闪电 雷雨 春风 秋霜 清晨 黄昏 午夜 盛夏 寒冬 珍珠 玛瑙 翡翠 水晶 琥珀 丝绸 棉布 陶瓷 木头 "
    "石头 泥土 火焰 冰川 蜂蜜 食盐 白糖 胡椒 生姜 绿茶 咖啡 米酒 面包 豆腐 芝麻 核桃 红枣 小麦",
    "铁锤 剪刀 钥匙 雨伞 灯笼 蜡烛 镜子 梳子 毛笔 砚台 书桌 椅子 床铺 箱子 篮子 水桶 茶壶 瓷碗 筷子 勺子 钟表 眼镜 帽子 "
    "手套 围巾 毛衣 皮鞋 背包 地图 罗盘 帆船 马车 火车 飞机 火箭 桥梁 城堡 宝塔 寺庙 花园 院子 窗户 大门 围墙 楼梯 屋顶 "
    "烟囱 风车 水井 田野 琵琶 古琴 笛子 铜鼓 风筝 陀螺 棋盘 扇子 屏风 香炉 宝剑 盾牌 弓箭 铠甲",
)
