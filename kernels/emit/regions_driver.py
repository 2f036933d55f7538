"""The part of kernels/cpu/regions.py that knows windows, blocks and chunks, and no opcodes."""

from __future__ import annotations

from tapegrad.kernels import words


def constants() -> str:
    """Return the numbers of words and kinds as assignments."""
    lines = []
    for names in (words.HEADER, words.WINDOW, words.HOWS, words.IN_KINDS, words.OUT_KINDS):
        lines += [f"{name} = {number}" for number, name in enumerate(names)]
    lines += [
        f"HEADER_BYTES = {8 * words.HEADER_WORDS}",
        f"WINDOW_BYTES = {8 * words.WINDOW_WORDS}",
        f"LINE = {words.LINE}  # bytes of a line of the cache",
        f"PAD = {words.PAD}  # bytes between rows, lest they meet in one place of the cache",
    ]
    # A window and a region have no word of the same name.
    assert not set(words.HEADER) & set(words.WINDOW)
    return "\n".join(lines) + "\n"


DRIVER = '''@helper
def smaller(i, j):
    """Return the smaller integer; Numba's own `min` takes many times as long to compile."""
    return i if i < j else j


@helper
def larger(i, j):
    """Return the larger integer."""
    return i if i > j else j


@helper
def copy(target, source, lanes):
    """Copy numbers."""
    whole = lanes // WIDTH * VECTOR
    for m in range(0, whole, VECTOR):
        store(target + m, load(source + m))
    for m in range(whole, NUMBER * lanes, NUMBER):
        write_number(target + m, read_number(source + m))


@helper
def add(target, source, lanes):
    """Add numbers to others."""
    whole = lanes // WIDTH * VECTOR
    for m in range(0, whole, VECTOR):
        store(target + m, load(target + m) + load(source + m))
    for m in range(whole, NUMBER * lanes, NUMBER):
        write_number(target + m, read_number(target + m) + read_number(source + m))


@helper
def fill(target, value, lanes):
    """Write one number many times."""
    whole = lanes // WIDTH * VECTOR
    spread = splat(value)
    for m in range(0, whole, VECTOR):
        store(target + m, spread)
    for m in range(whole, NUMBER * lanes, NUMBER):
        write_number(target + m, value)


@helper
def total(source, lanes):
    """Return the sum of numbers."""
    result = 0.0
    whole = lanes // WIDTH * VECTOR
    if whole > 0:
        sums = load(source)
        for m in range(VECTOR, whole, VECTOR):
            sums = sums + load(source + m)
        for i in range(WIDTH):
            result += simd.lane(sums, i)
    for m in range(whole, NUMBER * lanes, NUMBER):
        result += read_number(source + m)
    return result


@helper
def start_of(how):
    """Return what an element holds before any lane has met it."""
    return 0.0 if how < MAXIMUM else -inf if how == MAXIMUM else inf


@helper
def is_beyond(a, b, how):
    """Whether numbers stay when they meet others in a maximum or minimum; a nan does."""
    sign = 1.0 if how == MAXIMUM else -1.0
    return (sign * a > sign * b) | (a != a)


@helper
def join(target, source, lanes, how):
    """Let numbers be met by others: their sums, or the larger or smaller ones."""
    if how < MAXIMUM:
        add(target, source, lanes)
        return
    whole = lanes // WIDTH * VECTOR
    for m in range(0, whole, VECTOR):
        a = load(target + m)
        b = load(source + m)
        store(target + m, select(is_beyond(a, b, how), a, b))
    for m in range(whole, NUMBER * lanes, NUMBER):
        write_number(target + m, met(read_number(target + m), read_number(source + m), how))


@helper
def met(x, y, how):
    """Return the sum of two numbers, or the larger or smaller one."""
    if how < MAXIMUM:
        return x + y
    return x if is_beyond(x, y, how) else y


@helper
def extreme(source, lanes, how):
    """Return the largest or smallest of numbers."""
    result = start_of(how)
    whole = lanes // WIDTH * VECTOR
    if whole > 0:
        a = load(source)
        for m in range(VECTOR, whole, VECTOR):
            b = load(source + m)
            a = select(is_beyond(a, b, how), a, b)
        for i in range(WIDTH):
            result = met(result, simd.lane(a, i), how)
    for m in range(whole, NUMBER * lanes, NUMBER):
        result = met(result, read_number(source + m), how)
    return result


@helper
def locate(d, w, lane):
    """Return the place of a lane in a window, and how many lanes follow along the last axis."""
    shape = d + 8 * word(d, SHAPE)
    strides = d + 8 * word(w, STRIDES)
    axis = word(d, AXES) - 1
    extent = word(shape, axis)
    rest = lane // extent
    j = lane - rest * extent
    place = word(w, OFFSET) + j * word(strides, axis)
    run = extent - j
    axis -= 1
    while axis > 0:
        extent = word(shape, axis)
        outer = rest // extent
        place += (rest - outer * extent) * word(strides, axis)
        rest = outer
        axis -= 1
    if axis == 0:
        place += rest * word(strides, 0)
    return place, run


@helper
def last_stride(d, w):
    """Return the step of a window along the last axis."""
    return word(d, word(w, STRIDES) + word(d, AXES) - 1)


@helper
def index_of(w, buffers):
    """Return the address of a window's index array, or 0."""
    number = word(w, INDEX)
    return word(buffers, number) if number >= 0 else 0


@helper
def element(w, index, place):
    """Return the element that an index array has at a place."""
    return word(w, BASE) + read_u32(index + 4 * place)


@helper
def bring(d, w, buffers, lane, lanes, row):
    """Write the values of lanes of a window into a row, run by run of the last axis."""
    source = word(buffers, word(w, BUFFER))
    index = index_of(w, buffers)
    step = last_stride(d, w)
    done = 0
    while done < lanes:
        place, run = locate(d, w, lane + done)
        run = smaller(run, lanes - done)
        to = row + NUMBER * done
        if index:
            for i in range(run):
                at = element(w, index, place + i * step)
                write_number(to + NUMBER * i, read_number(source + NUMBER * at))
        elif step == 1:
            copy(to, source + NUMBER * place, run)
        elif step == 0:
            fill(to, read_number(source + NUMBER * place), run)
        else:
            for i in range(run):
                write_number(to + NUMBER * i, read_number(source + NUMBER * (place + i * step)))
        done += run


@helper
def carry(d, w, target, index, how, lane, lanes, row):
    """Carry lanes of a row out through a window, run by run of the last axis."""
    step = last_stride(d, w)
    done = 0
    while done < lanes:
        place, run = locate(d, w, lane + done)
        run = smaller(run, lanes - done)
        source = row + NUMBER * done
        to = target + NUMBER * place
        if index:
            for i in range(run):
                at = target + NUMBER * element(w, index, place + i * step)
                was = read_number(at) if how else 0.0
                write_number(at, met(was, read_number(source + NUMBER * i), how))
        elif step == 1:
            if how:
                join(to, source, run, how)
            else:
                copy(to, source, run)
        elif step == 0 and how >= MAXIMUM:
            write_number(to, met(read_number(to), extreme(source, run, how), how))
        elif step == 0 and how:
            write_number(to, read_number(to) + total(source, run))
        elif how:
            for i in range(run):
                at = to + NUMBER * i * step
                write_number(at, met(read_number(at), read_number(source + NUMBER * i), how))
        else:
            for i in range(run):
                write_number(to + NUMBER * i * step, read_number(source + NUMBER * i))
        done += run


@helper
def clear(d, w, buffers):
    """Make the elements of a window as they are before any lane meets them, each once."""
    start = start_of(word(w, HOW))
    target = word(buffers, word(w, BUFFER))
    index = index_of(w, buffers)
    shape = d + 8 * word(d, SHAPE)
    strides = d + 8 * word(w, STRIDES)
    axes = word(d, AXES)
    count = 1
    for axis in range(axes):
        if word(strides, axis) != 0:
            count *= word(shape, axis)
    for i in range(count):
        place = word(w, OFFSET)
        rest = i
        for axis in range(axes - 1, -1, -1):
            step = word(strides, axis)
            if step != 0:
                extent = word(shape, axis)
                outer = rest // extent
                place += (rest - outer * extent) * step
                rest = outer
        if index:
            place = element(w, index, place)
        write_number(target + NUMBER * place, start)


@helper
def fill_rows(d, buffers, lanes, rows, first):
    """Say where rows are, and fill those that hold one number; no instruction writes these."""
    pitch = NUMBER * word(d, BLOCK) + PAD
    for r in range(word(d, ROWS)):
        write_i64(rows + 8 * r, first + r * pitch)
    for r in range(word(d, CONSTANTS)):
        fill(first + r * pitch, read_number(word(d, VALUES) + NUMBER * r), lanes)
    w = d + HEADER_BYTES
    for _ in range(word(d, INPUTS)):
        if word(w, KIND) == UNIFORM:
            place = word(w, OFFSET)
            index = index_of(w, buffers)
            if index:
                place = element(w, index, place)
            value = read_number(word(buffers, word(w, BUFFER)) + NUMBER * place)
            fill(first + word(w, ROW) * pitch, value, lanes)
        w += WINDOW_BYTES


@helper
def open_chunk(d, buffers, c, start):
    """Let the sums of a chunk start at zero."""
    w = d + HEADER_BYTES + WINDOW_BYTES * word(d, INPUTS)
    for _ in range(word(d, OUTPUTS)):
        kind = word(w, KIND)
        if kind == SUM:
            start_value = start_of(word(w, HOW))
            store(word(buffers, word(w, EXTRA)) + VECTOR * c, splat(start_value))
        elif kind == PRIVATE:
            extent = word(w, EXTENT)
            private = word(buffers, word(w, EXTRA)) + NUMBER * c * extent
            fill(private, start_of(word(w, HOW)), extent)
        elif kind == LEAD and c > 0 and not word(w, HOW):
            # What the lead of the chunk before sets here comes later, from its halo.
            target = word(buffers, word(w, BUFFER)) + NUMBER * (word(w, LOW) + start)
            fill(target, 0.0, word(w, HALO))
        w += WINDOW_BYTES


@helper
def bring_in(d, buffers, lane, lanes, rows, first):
    """Fill the rows of in-windows for a block; whole ones that lie in memory are left there."""
    pitch = NUMBER * word(d, BLOCK) + PAD
    padded = (lanes + WIDTH - 1) // WIDTH * WIDTH
    w = d + HEADER_BYTES
    for _ in range(word(d, INPUTS)):
        kind = word(w, KIND)
        number = word(w, ROW)
        row = first + number * pitch
        if kind == IN_PLACE and lanes == padded:
            source = word(buffers, word(w, BUFFER)) + NUMBER * (word(w, OFFSET) + lane)
            if source % LINE and word(w, ALIGNED):
                copy(row, source, lanes)
                source = row
            write_i64(rows + 8 * number, source)
            if word(w, AHEAD):
                ahead = word(buffers, word(w, BUFFER)) + NUMBER * (word(w, OFFSET) + lane + lanes)
                for m in range(0, NUMBER * lanes, LINE):
                    simd.prefetch(ahead + m)
        elif kind != UNIFORM:
            write_i64(rows + 8 * number, row)
            bring(d, w, buffers, lane, lanes, row)
            fill(row + NUMBER * lanes, read_number(row), padded - lanes)
        w += WINDOW_BYTES


@helper
def owned(d, w, lane, lanes, stop):
    """Return how many lanes of an overlapping window stay inside their chunk."""
    if stop == word(d, SIZE):
        return lanes
    return larger(0, smaller(lanes, stop - lane - word(w, SHIFT)))


@helper
def place_out(d, buffers, lane, lanes, stop, rows, first):
    """Let rows of out-windows lie where they are to go."""
    pitch = NUMBER * word(d, BLOCK) + PAD
    w = d + HEADER_BYTES + WINDOW_BYTES * word(d, INPUTS)
    for _ in range(word(d, OUTPUTS)):
        if word(w, PLACED):
            number = word(w, ROW)
            row = first + number * pitch
            inside = lanes if word(w, KIND) == FLAT else owned(d, w, lane, lanes, stop)
            if lanes % WIDTH == 0 and inside == lanes:
                row = word(buffers, word(w, BUFFER)) + NUMBER * (word(w, OFFSET) + lane)
            write_i64(rows + 8 * number, row)
        w += WINDOW_BYTES


@helper
def open_joins(d, buffers, c, lane, lanes, stop, rows, first):
    """Say where groups of overlapping windows go that own code adds up; return whether it may.

    A group goes to consecutive elements from its head on: one a lane, and as many beyond as it
    reaches over, which is its tail. There lie unfinished sums, at the head those of the block
    before. They are kept, in case this block has to be run again.
    """
    at = rows + 8 * word(d, ROWS) + 8
    w = d + HEADER_BYTES + WINDOW_BYTES * word(d, INPUTS)
    for _ in range(word(d, OUTPUTS)):
        if word(w, JOINED) and word(w, KIND) == LEAD:
            halo = word(w, HALO)
            end = lane + lanes
            if lanes % WIDTH or (end < stop < smaller(end + halo, word(d, SIZE))):
                return False
            head = word(buffers, word(w, BUFFER)) + NUMBER * (word(w, LOW) + lane)
            tail = head + NUMBER * lanes
            if end == stop and stop < word(d, SIZE):
                tail = word(buffers, word(w, EXTRA)) + NUMBER * c * halo
            write_i64(at, head)
            write_i64(at + 8, tail)
            at += 16
            if word(d, CAREFUL):
                first -= VECTOR
                copy(first, head, halo)
        w += WINDOW_BYTES
    return True


@helper
def undo_joins(d, rows, first):
    """Leave at the heads of groups what was there before own code added to it."""
    at = rows + 8 * word(d, ROWS) + 8
    w = d + HEADER_BYTES + WINDOW_BYTES * word(d, INPUTS)
    for _ in range(word(d, OUTPUTS)):
        if word(w, JOINED) and word(w, KIND) == LEAD:
            first -= VECTOR
            copy(word(at, 0), first, word(w, HALO))
            at += 16
        w += WINDOW_BYTES


@helper
def any_nan(d, lanes, rows):
    """Whether the rows of out-windows of a block hold a nan."""
    w = d + HEADER_BYTES + WINDOW_BYTES * word(d, INPUTS)
    for _ in range(word(d, OUTPUTS)):
        row = word(rows, word(w, ROW))
        value = load(row)
        found = value != value
        for m in range(VECTOR, (lanes + WIDTH - 1) // WIDTH * VECTOR, VECTOR):
            value = load(row + m)
            found = found | (value != value)
        if simd.any_lane(found):
            return True
        w += WINDOW_BYTES
    return False


@helper
def carry_out(d, buffers, c, lane, lanes, stop, rows, joined):
    """Carry the rows of out-windows of a block to where they go, but for those `joined`."""
    w = d + HEADER_BYTES + WINDOW_BYTES * word(d, INPUTS)
    for _ in range(word(d, OUTPUTS)):
        kind = word(w, KIND)
        row = word(rows, word(w, ROW))
        target = word(buffers, word(w, BUFFER))
        flat = target + NUMBER * (word(w, OFFSET) + lane)
        how = word(w, HOW)
        if kind == FLAT:
            if how:
                add(flat, row, lanes)
            elif word(w, STREAMED) and lanes % WIDTH == 0 and flat % LINE == 0:
                for m in range(0, NUMBER * lanes, VECTOR):
                    store_streaming(flat + m, load(row + m))
            elif row != flat:
                copy(flat, row, lanes)
        elif kind == SUM:
            # Each lane of the vector has the same lanes of the chunk, wherever blocks begin.
            sums = word(buffers, word(w, EXTRA)) + VECTOR * c
            place = (lane - c * word(d, CHUNK)) % WIDTH
            before = smaller(-place % WIDTH, lanes)
            join(sums + NUMBER * place, row, before, how)
            row += NUMBER * before
            rest = lanes - before
            whole = rest // WIDTH * VECTOR
            if how >= MAXIMUM:
                for m in range(0, whole, VECTOR):
                    join(sums, row + m, WIDTH, how)
            else:
                partial = load(sums)
                for m in range(0, whole, VECTOR):
                    partial = partial + load(row + m)
                store(sums, partial)
            join(sums, row + whole, rest % WIDTH, how)
        elif kind == WALK:
            carry(d, w, target, index_of(w, buffers), how, lane, lanes, row)
        elif kind == PRIVATE:
            extent = word(w, EXTENT)
            private = word(buffers, word(w, EXTRA)) + NUMBER * (c * extent - word(w, LOW))
            carry(d, w, private, 0, larger(how, ADD), lane, lanes, row)
        elif kind == LATER:
            copy(word(buffers, word(w, EXTRA)) + NUMBER * lane, row, lanes)
        elif not (joined and word(w, JOINED)):
            inside = owned(d, w, lane, lanes, stop)
            halo = word(buffers, word(w, EXTRA)) + NUMBER * c * word(w, HALO)
            beyond = halo + NUMBER * (lane + inside + word(w, SHIFT) - stop)
            if kind == LEAD:
                if how:
                    add(flat, row, inside)
                elif row != flat:
                    copy(flat, row, inside)
                copy(beyond, row + NUMBER * inside, lanes - inside)
            else:
                add(flat, row, inside)
                add(beyond, row + NUMBER * inside, lanes - inside)
        w += WINDOW_BYTES


@helper
def lanes_before_line(d, buffers, lane):
    """Return how many lanes come before the results past the cache fill lines of it."""
    w = d + HEADER_BYTES + WINDOW_BYTES * word(d, INPUTS)
    for _ in range(word(d, OUTPUTS)):
        if word(w, STREAMED):
            at = word(buffers, word(w, BUFFER)) + NUMBER * (word(w, OFFSET) + lane)
            return -at % LINE // NUMBER
        w += WINDOW_BYTES
    return 0


@helper
def chunk(d, buffers, c, scratch, first, blocks):
    """Run one chunk, a block of lanes after another."""
    start = c * word(d, CHUNK)
    stop = smaller(word(d, SIZE), start + word(d, CHUNK))
    open_chunk(d, buffers, c, start)
    lane = start
    while lane < stop:
        lanes = smaller(word(d, BLOCK), stop - lane)
        if lane == start and word(d, PEELED):
            before = lanes_before_line(d, buffers, lane)
            lanes = smaller(before, lanes) if before else lanes
        bring_in(d, buffers, lane, lanes, scratch, first)
        place_out(d, buffers, lane, lanes, stop, scratch, first)
        own = word(d, OWN)
        joined = own and word(d, JOINS)
        if joined and not open_joins(d, buffers, c, lane, lanes, stop, scratch, first):
            own = joined = 0
        call_native(own if own else blocks, word(d, CODE), word(d, INSTRUCTIONS), scratch, lanes)
        # Behind the addresses of the rows, code of a region's own says whether there may be a nan.
        again = word(d, CAREFUL) and (
            word(scratch, word(d, ROWS)) if own else any_nan(d, lanes, scratch)
        )
        if again:
            if joined:
                undo_joins(d, scratch, first)
                joined = 0
            call_native(blocks, word(d, CAREFUL), word(d, CAREFUL_INSTRUCTIONS), scratch, lanes)
        carry_out(d, buffers, c, lane, lanes, stop, scratch, joined)
        lane += lanes


@helper
def prepare(d, buffers):
    """Make zero what several windows are going to add to."""
    w = d + HEADER_BYTES + WINDOW_BYTES * word(d, INPUTS)
    for _ in range(word(d, OUTPUTS)):
        if word(w, ZERO):
            clear(d, w, buffers)
        w += WINDOW_BYTES


@helper
def finish(d, buffers):
    """Add up what the chunks have put aside, in their order."""
    chunks = word(d, CHUNKS)
    w = d + HEADER_BYTES + WINDOW_BYTES * word(d, INPUTS)
    for _ in range(word(d, OUTPUTS)):
        kind = word(w, KIND)
        how = word(w, HOW)
        target = word(buffers, word(w, BUFFER))
        if kind == SUM:
            first = word(buffers, word(w, EXTRA))
            for c in range(1, chunks):
                join(first, first + VECTOR * c, WIDTH, how)
            place = word(w, OFFSET)
            index = index_of(w, buffers)
            if index:
                place = element(w, index, place)
            result = read_number(target + NUMBER * place) if how == ADD else start_of(how)
            for i in range(WIDTH):
                result = met(result, read_number(first + NUMBER * i), how)
            write_number(target + NUMBER * place, result)
        elif kind == PRIVATE:
            if how != ADD:
                clear(d, w, buffers)
            extent = word(w, EXTENT)
            for c in range(chunks):
                private = word(buffers, word(w, EXTRA)) + NUMBER * c * extent
                join(target + NUMBER * word(w, LOW), private, extent, how)
        elif kind == LATER:
            if how != ADD:
                clear(d, w, buffers)
            aside = word(buffers, word(w, EXTRA))
            index = index_of(w, buffers)
            carry(d, w, target, index, larger(how, ADD), 0, word(d, SIZE), aside)
        elif kind == LEAD:
            halo = word(w, HALO)
            for c in range(chunks - 1):
                to = target + NUMBER * (word(w, LOW) + (c + 1) * word(d, CHUNK))
                add(to, word(buffers, word(w, EXTRA)) + NUMBER * c * halo, halo)
        w += WINDOW_BYTES


@kernel
def run(d, buffers, first, stop, whole, scratch, blocks):
    """Run the chunks from `first` to `stop` of a region.

    Parameters
    ----------
    d : int
        Address of the region's words; see kernels/words.py.
    buffers : int
        Address of the addresses of its buffers.
    first, stop : int
        The chunks to run. Chunks are independent of each other.
    whole : int
        1 where these are all chunks: nothing else is to be done. Otherwise the first call is for
        chunks 0 to 0 with 2, and the last one for none with 4.
    scratch : int
        Address of room for the rows of a block.
    blocks : int
        Address of `block`, compiled; for regions without a function of their own.
    """
    if whole & 3:
        prepare(d, buffers)
    joins = word(d, JOINS)
    table = 8 * (word(d, ROWS) + 1 + 2 * joins)
    rows = scratch + ((table + VECTOR - 1) // VECTOR + joins) * VECTOR
    if first < stop:
        lanes = smaller(word(d, SIZE) - first * word(d, CHUNK), word(d, BLOCK))
        fill_rows(d, buffers, (lanes + WIDTH - 1) // WIDTH * WIDTH, scratch, rows)
    for c in range(first, stop):
        chunk(d, buffers, c, scratch, rows, blocks)
    if whole & 5:
        finish(d, buffers)


SIGNATURES = {
    "block": "void(int64, int64, int64, int64)",
    "run": "void(int64, int64, int64, int64, int64, int64, int64)",
}


def compile_all() -> dict[str, Any]:
    """Compile the executor by itself, or load it from Numba's cache; return its kernels."""
    run.compile(SIGNATURES["run"])
    return {"run": run, "block": native(block, SIGNATURES["block"])}
'''
