"""English wordings of each kind of question, in three sets of templates: to train on, for `val`, for `test`.

Tables only, in the notation of `grammar`; a template a line, and no template of one set is one of another with other
words for the same: what is held out is asked in another way.
"""

from __future__ import annotations

WORDS = {
    "it": "it|this|this thing|this object|the object|this model|the shape",
    "its": "its|the",
    "thing": "thing|object|model|shape|item",
    "what": "what's|what is|whats",
}
FRAMES = {
    "train": ("{}", "{}", "{}", "{}", "{}", "Please tell me: {}", "Hi! {}", "{} Thanks!"),
    "val": ("{}", "{}", "{}", "{}", "{}", "Quick question: {}", "{} I'd like to know."),
    "test": ("{}", "{}", "{}", "{}", "{}", "One more thing: {}", "{} Just curious."),
}
"""What stands around a question now and then."""
CLASSES = {
    "is_furniture": "[a piece of|] furniture",
    "is_vehicle": "a vehicle",
    "is_plant": "a plant",
    "is_building": "a building",
    "is_body_part": "[a|some] part of the [human|] body",
    "is_internal_organ": "an [internal|human|] organ",
}
"""What the kinds of `_IS_CLASS` ask for."""
_IS_CLASS = (
    """
    is <it> <class>?
    is <it> <class> or not?
    would you [say|call] <it> <class>?
    [do|would] you think <it> is <class>?
    <class>?
    tell me [if|whether] <it> is <class>.
    does <it> look like <class>?
    """,
    """
    is <class> what we're looking at?
    am I right that <it> is <class>?
    <class>, yes or no?
    """,
    """
    could one call <it> <class>?
    I wonder whether <it> counts as <class>.
    so you'd file <it> under <class>?
    """,
)
PROPERTIES = {
    "colour": (
        """
        what colo[u|]r is <it>?
        <what> <its> colo[u|]r?
        colo[u|]r?
        which colo[u|]r does <it> have?
        is <it> [red|blue|green|black|white|yellow|grey]?
        tell me the colo[u|]r[s|] of <it>.
        is <it> [red|black|brown] or [white|green|blue]?
        what colo[u|]r would you say <it> is?
        """,
        """
        in [what|which] colo[u|]r was <it> painted?
        does <it> come in [orange|purple|pink]?
        how is <it> colo[u|]red?
        can you name the colo[u|]rs that are used here?
        """,
        """
        what shade is <it>?
        which hue [is|has] <it>?
        <what> the paint [job|] like?
        [light or dark|bright or dark], what do you see?
        does <it> look [turquoise|beige|crimson|silvery]?
        """,
    ),
    "material": (
        """
        what is <it> made of?
        what material is <it>?
        <what> <its> material?
        material?
        is <it> [made of|] [wood|metal|plastic|stone|glass]?
        is <it> [wooden|metallic]?
        which material was used for <it>?
        whats it made out of?
        tell me what <it> is made from.
        """,
        """
        is <it> [wood or metal|plastic or wood|stone or concrete]?
        out of what was <it> built?
        does <it> consist of [leather|steel|rubber]?
        """,
        """
        what kind of stuff is <it>?
        which substance [was|has been] used here?
        is there any [fabric|aluminium|ceramic|bamboo] in <it>?
        what would <it> be in terms of materials: [oak|brass|marble]?
        """,
    ),
    "price": (
        """
        how much does <it> cost?
        how much is <it>?
        <what> the price [of <it>|]?
        price?
        what does <it> cost?
        is <it> [expensive|cheap]?
        how expensive is <it>?
        """,
        """
        what would I [have to|] pay for <it>?
        how many [dollars|euros] for <it>?
        could I afford <it>?
        """,
        """
        what is <it> worth?
        give me an estimate of <its> [market|] value.
        <what> a fair offer for <it>?
        for how much does <it> sell?
        """,
    ),
    "brand": (
        """
        what brand is <it>?
        which brand is <it>?
        <what> the brand [of <it>|]?
        brand?
        is <it> [from|by] [IKEA|Sony|Toyota]?
        do you know the brand [of <it>|]?
        tell me the brand.
        """,
        """
        under which brand name is <it> sold?
        whose brand would <it> be?
        is <it> an original [Nike|Samsung]?
        """,
        """
        which logo is on <it>?
        what label does <it> carry?
        is <it> a [Bosch|Philips] or a no-name product?
        """,
    ),
    "weight": (
        """
        how heavy is <it>?
        how much does <it> weigh?
        <what> <its> weight?
        weight?
        what does <it> weigh?
        is <it> heavy [or light|]?
        """,
        """
        how many [kilos|pounds|grams] [is|has] <it>?
        would <it> be too heavy to lift?
        what do the scales say for <it>?
        """,
        """
        <what> the mass of <it>?
        can a child carry <it>, or does <it> weigh a ton?
        by weight, where would you put <it>?
        """,
    ),
    "age": (
        """
        how old is <it>?
        <what> <its> age?
        age?
        when was <it> made?
        is <it> [old|new]?
        how many years old is <it>?
        """,
        """
        from [which|what] year is <it>?
        what's the year of manufacture [of <it>|]?
        was <it> made before [1950|2000]?
        """,
        """
        is <it> an antique?
        which century does <it> [come from|date from]?
        how long has <it> been around?
        """,
    ),
    "maker": (
        """
        who made <it>?
        who [built|designed|created] <it>?
        who is <its> maker?
        who's the manufacturer [of <it>|]?
        manufacturer?
        [do you know|can you tell me] who made <it>?
        """,
        """
        which [company|firm] produced <it>?
        whose work is <it>?
        by whom was <it> [modelled|made]?
        """,
        """
        <what> the name of the [artist|author|inventor] behind <it>?
        whom do I credit for <it>?
        out of which factory did <it> come?
        """,
    ),
    "shop": (
        """
        where was <it> bought?
        where can I buy <it>?
        where did [you|they] [buy|get] <it>?
        where is <it> sold?
        which shop is <it> from?
        """,
        """
        in which store did someone pick <it> up?
        is <it> from a flea market [or a shop|]?
        where would I order <it>?
        """,
        """
        who sells <it>?
        was <it> ordered online [or in a shop|]?
        which [retailer|supplier] stocks <it>?
        """,
    ),
    "owner": (
        "",
        """
        who owns <it>?
        whose is <it>?
        does <it> belong to somebody?
        """,
        """
        in whose house does <it> stand?
        <what> the name of the person who has <it>?
        """,
    ),
    "temperature": (
        "",
        "",
        """
        is <it> [warm or cold|hot|cold] [to the touch|]?
        how hot does <it> get?
        <what> the temperature of <it>?
        """,
    ),
    "smell": (
        "",
        "",
        """
        what does <it> smell like?
        does <it> have a smell?
        <what> the smell of <it>?
        """,
    ),
}
"""What a shape can't tell -> how it is asked for. Some things are asked for in held-out questions alone."""
WORDINGS = {
    "describe": (
        """
        describe [this|the] [3D|] <thing>.
        describe <it> [in one sentence|briefly|].
        describe it
        what does this 3D [shape|object|model] show?
        give [me|] a [short|] [caption|description] [for|of] this [3D|] <thing>.
        [can|could] you describe <it>[ for me|]?
        tell me about <it>.
        what do you see?
        what can you say about <it>?
        caption this.
        please describe [the object|this shape].
        """,
        """
        what is there to say about <it>?
        write [one|a] sentence about <it>.
        how would you describe <it> to someone who can't see it?
        I need a caption for <it>.
        """,
        """
        put <it> into words.
        in a few words, what have we got here?
        summarise what [you're looking at|is in front of you].
        explain to a friend on the phone what <it> looks like.
        """,
    ),
    "name": (
        """
        <what> [this|it|that]?
        <what> this [3D|] <thing>?
        <what> this [<thing>|] called?
        what is this object called?
        name this [3D|] <thing>.
        [can|could] you [tell me|say] what this is?
        do you know what <it> is?
        what am I looking at?
        what [kind|sort|type] of <thing> is this?
        what could <it> be?
        identify this <thing>.
        this is a what?
        """,
        """
        what would you call <it>?
        what does <it> represent?
        any idea what <it> might be?
        what have I uploaded?
        """,
        """
        give me the name of <it>.
        what do people call such a <thing>?
        which word fits <it> best?
        I can't tell what <it> is, can you?
        guess what <it> is.
        """,
    ),
    "category": (
        """
        which category does <it> belong to?
        what category is <it> [in|listed under]?
        <what> the category [of <it>|]?
        what [group|category] [does <it> fall into|is this]?
        category?
        which category [fits|suits] <it>?
        """,
        """
        under which category would I find <it>?
        how would you [classify|categorise] <it>?
        """,
        """
        into which category would a catalogue sort <it>?
        which heading of a catalogue does <it> stand under?
        """,
    ),
    "collection": (
        """
        which [collection|library] does <it> come from?
        where does [this model|it] come from?
        <what> the source [of this model|]?
        from which collection is <it>?
        """,
        """
        what set of models was <it> taken from?
        who published the collection with <it>?
        """,
        """
        in which library of models is <it> found?
        what is the origin of the file[ of <it>|]?
        """,
    ),
    "part_of": (
        """
        what is <it> [a|] part of?
        which set or larger model does <it> belong to?
        what does <it> belong to?
        is <it> part of something[ larger|], and of what?
        """,
        """
        from which larger thing does <it> come?
        <what> the whole that <it> is a part of?
        """,
        """
        where does <it> fit in, in what bigger model?
        name the set that <it> was published in.
        """,
    ),
    "organ": (
        """
        which [organ|structure|organ or structure] is this?
        what organ is [this|it]?
        name [this|the] [anatomical structure|organ].
        which body part is <it>?
        <what> this organ [called|]?
        what anatomy [is this|does this show]?
        """,
        """
        which part of the body does <it> show?
        can you identify the [organ|anatomical structure]?
        what would an anatomist call <it>?
        """,
        """
        from an anatomical point of view, what have we here?
        which [organ|structure] was segmented?
        what in the body looks like this?
        """,
    ),
    "side": (
        """
        is <it> on the left or [on|] the right [side|]?
        left or right?
        [on|] which side [is it|]?
        is <it> [the left or the right|a left or a right] one?
        <what> the side?
        """,
        """
        does <it> lie left or right?
        to which side of the body does <it> belong?
        """,
        """
        on which half of the patient is <it>?
        right-hand or left-hand side?
        """,
    ),
    "system": (
        """
        which organ system does <it> belong to?
        what [organ|body] system is <it> [a|] part of?
        <what> the organ system?
        which system of the body [is this|has this]?
        """,
        """
        to which system would a textbook assign <it>?
        in what organ system does <it> work?
        """,
        """
        which chapter of anatomy treats <it>: which system?
        name the system of organs around <it>.
        """,
    ),
    "anatomy": (
        """
        what is known about [this|the] structure?
        tell me about this [part of the body|organ].
        what do you know about this body part?
        """,
        """
        what does a doctor know about <it>?
        give me a fact about this part of the body.
        """,
        """
        teach me something about this structure.
        what should a student know of this organ?
        """,
    ),
    "longest_side": (
        """
        which is longest: [its|the] width, height or depth?
        along which side is <it> longest: width, height, depth?
        <what> the longest side: width, height or depth?
        width, height or depth, which is [the|] largest?
        """,
        """
        what does <it> have most of: width, height or depth?
        of width, height and depth, which one wins?
        """,
        """
        in which direction does <it> reach farthest, width, height or depth?
        compare width, height and depth, and name the greatest.
        """,
    ),
    "shape": (
        """
        is <it> flat, rod-like or compact?
        what are <its> proportions: flat, rod-like or compact?
        flat, rod-like or compact?
        would you call <it> flat, rod-like or compact?
        """,
        """
        which fits <it>: flat, rod-like, compact?
        how is <it> built, flat, rod-like or compact?
        """,
        """
        choose a word for <it>: flat, compact or rod-like.
        between compact, flat and rod-like, what describes <it>?
        """,
    ),
    "ratio": (
        """
        how many times [its|the] shortest side is [its|the] longest side?
        <what> the ratio of [the|] longest to [the|] shortest side?
        longest to shortest side?
        """,
        """
        by what factor does <its> longest side exceed the shortest?
        """,
        """
        divide <its> largest extent by the smallest.
        """,
    ),
    "long_to_wide": (
        """
        how long is <it> compared [to|with] its width?
        <what> the ratio of length to width [of <it>|]?
        how many times as long as wide is <it>?
        how long to wide?
        length to width?
        how much longer than wide is <it>?
        """,
        """
        by how much does <its> length exceed <its> width?
        seen from above, how long is <it> for its width?
        """,
        """
        if the width [of <it>|] were one, what would the length be?
        from above, how [stretched|elongated] is the outline?
        """,
    ),
    "size": (
        """
        how long is <its> longest side in reality?
        how [large|big] is <it>?
        size?
        <what> <its> [real|] size?
        """,
        """
        how many millimetres does <it> measure?
        what are the real dimensions of <it>?
        """,
        """
        what would a ruler say, held along <it>?
        in reality, what length does <it> have?
        """,
    ),
    "pieces": (
        """
        how many [separate|unconnected|] pieces does <it> have?
        of how many [unconnected|separate|] pieces is <it> made?
        how many parts?
        how many separate pieces does its surface have?
        into how many pieces does <it> fall?
        """,
        """
        count the [loose|separate] parts of <it>.
        how many bodies that don't touch are there?
        """,
        """
        <what> the number of unconnected components?
        if I printed <it>, how many separate bits would I [hold|get]?
        """,
    ),
    "legs": (
        """
        how many legs [does <it> have|has <it>|has it got|]?
        how many legs?
        number of legs?
        on how many legs does <it> stand?
        count the legs [of <it>|].
        """,
        """
        <what> the number of legs under <it>?
        are there legs, and how many?
        """,
        """
        if you count <its> feet on the floor, what do you get?
        say how many-legged <it> is.
        """,
    ),
    "used_for": (
        """
        what is <it> [used|good|] for?
        what's it for?
        what can [I|you|one] do with <it>?
        what do [people|you] use <it> for?
        <what> the [use|purpose] of <it>?
        why would [I|anyone] need <it>?
        """,
        """
        what function does <it> have?
        for what would someone use <it>?
        """,
        """
        which job does <it> do?
        when [do|would] people reach for <it>?
        explain what <it> serves for.
        """,
    ),
    "is_name": (
        """
        is [this|it|this object] {}?
        does this 3D shape show {}?
        {}?
        is this {} or not?
        would you say <it> is {}?
        [can|could] this be {}?
        does <it> look like {}?
        tell me [if|whether] <it> is {}.
        """,
        """
        is {} what we have here?
        am I right that <it> is {}?
        {}, yes or no?
        """,
        """
        I'd say <it> is {}, do you agree?
        did someone model {} here?
        would "{}" be the right word for <it>?
        """,
    ),
    "is_category": (
        """
        does <it> belong to the category "{}"?
        is <it> [listed|filed] under "{}"?
        is the category "{}"?
        category "{}", right?
        """,
        """
        would I find <it> under the heading "{}"?
        is "{}" a good category for <it>?
        """,
        """
        in a catalogue, does <it> stand in the section "{}"?
        could <it> be sorted into "{}"?
        """,
    ),
    "is_collection": (
        """
        does <it> come from the {}?
        is [this model|it] from the {}?
        from the {}, right?
        """,
        """
        was <it> taken from the {}?
        did someone take <it> out of the {}?
        """,
        """
        would I find <it> in the {}?
        can <it> be downloaded with the {}?
        """,
    ),
    "is_organ": (
        """
        is [this|it] the {}?
        does this surface show the {}?
        the {}?
        would you say this is the {}?
        is the {} shown [here|]?
        """,
        """
        am I right that <it> is the {}?
        the {}, yes or no?
        """,
        """
        could this be somebody's {}?
        did they segment the {} here?
        """,
    ),
    "is_side": (
        """
        is <it> on the {} side?
        does <it> lie on the {} side?
        is <it> the {} one?
        is this {}?
        """,
        """
        am I right that <it> is on the {}?
        {} side, yes or no?
        """,
        """
        does the {} half of the body hold <it>?
        would you place <it> on the {}?
        """,
    ),
    "is_system": (
        """
        is <it> [a|] part of the {}?
        does <it> belong to the {}?
        is [this|it] from the {}?
        """,
        """
        is the {} where <it> belongs?
        am I right that <it> is in the {}?
        """,
        """
        would a textbook treat <it> under the {}?
        is <it> at work in the {}?
        """,
    ),
    "is_shape": (
        """
        are its proportions {}?
        would you say its proportions are {}?
        is [it|this] {}?
        does <it> have {} proportions?
        """,
        """
        is {} the word for its proportions?
        overall, is the shape {}?
        """,
        """
        do you see something {} in its proportions?
        does "{}" describe the proportions?
        """,
    ),
    "is_mirrored": (
        """
        are [its|the] left and right halves mirror images of each other?
        is <it> symmetric, its left half like its right half?
        is the left half like the right half?
        do [its|the] left and right halves mirror each other?
        """,
        """
        would a mirror in the middle show the other half, left for right?
        left and right, are they mirrored?
        """,
        """
        if I exchanged left and right, would <it> look the same?
        does the right half repeat the left one as a mirror would?
        """,
    ),
    "is_taller": (
        """
        is <it> taller than [it is|] wide?
        is <it> higher than [it is|] wide?
        taller than wide?
        is the height [greater|larger|more] than the width?
        is <it> tall rather than wide?
        would you say <it> is taller than wide?
        is its height bigger than its width?
        """,
        """
        does its height exceed its width?
        which is true: is <it> more tall than it is wide?
        standing there, is <it> taller than broad?
        """,
        """
        compared with its width, does <it> have the greater height?
        is <it> a tall thing [and not a wide one|more than a wide one]?
        does <it> go up farther than it goes sideways?
        """,
    ),
    "is_longer": (
        """
        is <it> longer than [it is|] [tall|high]?
        longer than [tall|high]?
        is <its> length [greater|larger|more] than <its> height?
        is <it> long rather than tall?
        would you say <it> is longer than high?
        """,
        """
        does <its> length exceed <its> height?
        lying there, is <it> more long than it is high?
        """,
        """
        compared with its height, does <it> have the greater length?
        does <it> stretch along the ground farther than it rises?
        """,
    ),
    "is_flat": (
        """
        is <it> flat?
        flat?
        is <it> flat or not?
        is this a flat <thing>?
        would you [say|call] <it> [is|] flat?
        does <it> look flat?
        is [it|this] [very|rather|] flat?
        """,
        """
        do you see something flat here?
        is <it> as flat as a [plate|board]?
        am I looking at something flat?
        """,
        """
        is <it> thin and broad like a sheet?
        is flatness a feature of <it>?
        has <it> hardly any thickness for its size?
        """,
    ),
    "is_symmetric": (
        """
        is <it> symmetric[al|]?
        symmetric[al|]?
        does <it> have [a|any] symmetry?
        is <it> symmetric or not?
        is this a symmetric[al|] <thing>?
        would you say <it> is symmetric[al|]?
        is <it> mirror-symmetric[al|]?
        """,
        """
        do both halves of <it> look alike?
        can <it> be cut into two halves that mirror each other?
        is there a plane of symmetry?
        """,
        """
        would <it> look the same in a mirror?
        is one half of <it> the mirror image of the other?
        does symmetry show in <it>?
        """,
    ),
    "has_hole": (
        """
        does <it> have a hole[ in it|]?
        is there a hole [in|through] <it>?
        any holes[ in it|]?
        has <it> [got|] a hole?
        are there [any|] holes [in|through] <it>?
        does <it> have holes?
        hole in it?
        """,
        """
        can you see an opening that goes right through <it>?
        is <it> pierced somewhere?
        could I pull a string through <it>?
        """,
        """
        is there a place where a finger could go through <it>?
        does <it> go around an empty space like a ring or a handle?
        does an opening lead from one side of <it> to the other?
        """,
    ),
    "is_one_piece": (
        """
        is <it> [in|] one piece?
        one piece?
        is <it> a single piece?
        does <it> consist of [just|] one [connected|] piece?
        is <it> made [of|in] one piece or not?
        is everything connected?
        is <it> all [one|] [connected|in one piece]?
        """,
        """
        does <it> hang together as a whole?
        are all of its parts joined?
        would <it> stay together if you lifted it?
        """,
        """
        can I pick <it> up without leaving a part behind?
        is there nothing loose about <it>?
        do we have a single connected body?
        """,
    ),
    **{kind: tuple(block.replace("<class>", f"[{noun}]") for block in _IS_CLASS) for kind, noun in CLASSES.items()},
}
"""Kind -> the templates of the three sets."""
