"""Which lines of standard input are in the memory of a process, and in the memory files that it has open: those, as JSON."""
import json
import os
import sys

PIECE = 1 << 22
PAGE = os.sysconf("SC_PAGE_SIZE")
PRESENT = 1 << 63
SWAPPED = 1 << 62

pid = sys.argv[1]
wanted = {line.strip().encode() for line in sys.stdin if line.strip()}
overlap = max(map(len, wanted)) - 1
found = set()


def search(file, begin, end):
    rest = b""
    for at in range(begin, end, PIECE):
        file.seek(at)
        piece = rest + file.read(min(PIECE, end - at))
        found.update(text for text in wanted if text in piece)
        rest = piece[-overlap:]


def mapped(begin, end):
    """Runs of pages that are there: to read another one would make it."""
    with open(f"/proc/{pid}/pagemap", "rb") as pagemap:
        pagemap.seek(begin // PAGE * 8)
        entries = memoryview(pagemap.read((end - begin) // PAGE * 8)).cast("Q")
    start = None
    for i, entry in enumerate(entries):
        is_there = entry & (PRESENT | SWAPPED)
        if is_there and start is None:
            start = i
        if not is_there and start is not None:
            yield begin + start * PAGE, begin + i * PAGE
            start = None
    if start is not None:
        yield begin + start * PAGE, end


with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as memory:
    for line in maps:
        where, rights = line.split()[:2]
        if rights[0] == "r" and "[v" not in line:
            for run in mapped(*(int(part, 16) for part in where.split("-"))):
                search(memory, *run)

for fd in os.listdir(f"/proc/{pid}/fd"):
    path = f"/proc/{pid}/fd/{fd}"
    if not os.readlink(path).startswith("/memfd:"):
        continue
    with open(path, "rb", 0) as file:
        at = 0
        while True:
            try:
                begin = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:
                break
            at = os.lseek(file.fileno(), begin, os.SEEK_HOLE)
            search(file, begin, at)
print(json.dumps(sorted(text.decode() for text in found)))
