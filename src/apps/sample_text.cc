#include "apps/sample_text.h"

namespace nibble::apps {

const std::string_view kSampleText =
    R"(The harbour lay quiet in the early morning. Three fishing boats were tied to the
stone wall, their ropes dark with water, and a grey cat walked along the edge as if it owned the place. Anna put down her
bag and looked at the sky. "It will rain before noon," she said. Her brother laughed. "You say that every day." "And most
days I am right," she answered, and they both began to load the crates onto the cart.

Bread is made from four things: flour, water, salt and yeast. Mix the flour with the salt, warm the water until it feels
like nothing on your hand, and stir the yeast into it. Pour the water over the flour and work the dough for ten minutes,
until it is smooth and springs back when you press it. Cover the bowl with a cloth and leave it in a warm place for an
hour. When the dough has doubled in size, shape it into a loaf, let it rest for another half hour, and bake it in a hot
oven until the crust is brown and the bottom sounds hollow when you knock on it.

The Moon goes around the Earth in about twenty-seven days. Because it turns once around its own axis in the same time, we
always see the same side of it. The tides of the sea follow the Moon: its gravity pulls at the water on the near side a
little more than at the Earth itself, and at the water on the far side a little less, so that two bulges of water travel
around the globe. The Sun does the same, but with less than half the effect, since it is so much farther away.

def mean(values):
    """Return the arithmetic mean of a list of numbers."""
    if not values:
        raise ValueError("the list is empty")
    total = 0
    for value in values:
        total += value
    return total / len(values)

def test_mean():
    assert mean([1, 2, 3, 4]) == 2.5
    assert mean([10]) == 10

Question: A train leaves the station at 9:15 and arrives at 11:45. How long does the journey take?
Answer: From 9:15 to 11:15 is two hours, and from 11:15 to 11:45 is another 30 minutes, so the journey takes 2 hours and
30 minutes.

Question: What is the difference between weather and climate?
Answer: Weather is what the air does today or this week: rain, wind, sunshine, heat. Climate is what the weather does over
many years. A cold winter is weather; winters that become warmer from one generation to the next are climate.

Dear Mr. Keller,

Thank you for your letter of 3 May. We are sorry to hear that the lamp which you ordered from us arrived with a broken
shade. We have sent you a new one today, free of charge, and you should receive it within five working days. There is no
need to return the damaged one. If you have any further questions, please call us between eight and six o'clock.

The five largest planets of the solar system, in order of size, are:
1. Jupiter
2. Saturn
3. Uranus
4. Neptune
5. Earth

In the evening the wind became stronger. The old man closed the shutters, put another log on the fire and opened his book
at the page where he had stopped the night before. It was the story of a captain who had sailed around the world twice and
had never learned to swim. He had read it many times, and he knew that in the end the captain came home; but he read on
all the same, slowly, because he liked the way in which the story was told, and because outside, in the dark, the sea was
making the same sound that it had made in the captain's time.
)";

}  // namespace nibble::apps
