import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { ServedMount } from './served-mount.ts';

describe('shells, editors and core tools on a mount', () => {
  let mount: ServedMount;
  before(async () => {
    mount = await ServedMount.start();
  });
  after(() => mount[Symbol.asyncDispose]());

  for (const shell of ['dash', 'bash']) {
    test(`${shell} writes with > and >>, and its readers never see a file that is empty in between`, async () => {
      const said = await mount.sh(`
        ${shell} -c 'echo one > f; echo two >> f; cat f; echo three > f; cat f; : > f; stat -c %s f; cat >> f <<X
here
X
cat f; { echo a; echo b; } > f; cat f; echo x 1<> f; cat f'
        echo old > g
        (while [ ! -e stop ]; do echo "[$(cat g)]"; done > seen) & reader=$!
        ${shell} -c 'i=0; while [ $i -lt 200 ]; do echo new > g; i=$((i + 1)); done'
        until grep -q new seen; do :; done; touch stop; wait $reader; sort -u seen`);
      assert.match(said, /^one\ntwo\nthree\n0\nhere\na\nb\nx\nb\n\[new\]\n(\[old\]\n)?$/);
    });

    test(`${shell} appends with >> from 8 processes, and every line is there once`, async () => {
      const said = await mount.sh(`
        for p in 1 2 3 4 5 6 7 8; do
          ${shell} -c 'i=0; while [ $i -lt 50 ]; do echo "$1 $i" >> log; i=$((i + 1)); done' x $p &
        done
        wait; wc -l < log; sort -u log | wc -l; grep -cE '^[1-8] [0-9]+$' log`);
      assert.equal(said, '400\n400\n400\n');
    });

    test(`${shell} refuses > over a file under noclobber, and >| writes it`, async () => {
      const { exitCode } = await mount.run(`${shell} -c 'set -C; echo 1 > f; echo 2 > f'`);
      assert.notEqual(exitCode, 0);
      assert.equal(
        await mount.sh(`${shell} -c 'set -C; echo 1 > f; (echo 2 > f) 2> /dev/null; echo 3 >| g; cat f g'`),
        '1\n3\n',
      );
    });
  }

  test('one descriptor appended to by 8 processes has every line once', async () => {
    const said = await mount.sh(`
      exec 9>> log
      for p in 1 2 3 4 5 6 7 8; do (for i in $(seq 50); do echo "$p $i" >&9; done) & done
      wait; sort -u log | wc -l; wc -l < log`);
    assert.equal(said, '400\n400\n');
  });

  test('ed, sed -i, perl -i and vim save in place, by rename and with backups, and keep owner and mode', async () => {
    const said = await mount.sh(`
      printf 'one\\ntwo\\n' > f; chown 1000:1001 f; chmod 640 f
      look() { stat -c '%a %u %g' f; tr '\\n' ' ' < f; echo; }
      printf '%s\\n' '1s/one/ed/' w q | ed -s f; look
      sed -i s/ed/sed/ f; look
      perl -pi.bak -e s/sed/perl/ f; look; cat f.bak
      vim.tiny -es -u NONE --cmd 'set nobackup nowritebackup' '+%s/perl/vim1/' +wq f < /dev/null; look
      vim.tiny -es -u NONE --cmd 'set writebackup backupcopy=no backupskip=' '+%s/vim1/vim2/' +wq f < /dev/null; look
      vim.tiny -es -u NONE --cmd 'set backup backupcopy=yes backupskip=' '+%s/vim2/vim3/' +wq f < /dev/null; look; cat f~
      ls -A | tr '\\n' ' '`);
    assert.equal(
      said,
      ['ed', 'sed', 'perl'].map((by) => `640 1000 1001\n${by} two \n`).join('') +
        'sed\ntwo\n' +
        ['vim1', 'vim2', 'vim3'].map((by) => `640 1000 1001\n${by} two \n`).join('') +
        'vim2\ntwo\nf f.bak f~ ',
    );
  });

  test('mktemp, install, ln -s, mv, cp, touch, truncate, dd and tee do what they do on a disk', async () => {
    const said = await mount.sh(`
      umask 022
      t=$(mktemp -p .); stat -c '%a %s' "$t"; d=$(mktemp -d -p .); stat -c %a "$d"
      echo data > "$t"; install -m 2750 -o 1000 -g 1001 "$t" installed; stat -c '%a %u %g %s' installed
      ln -s installed link; readlink link; cat link; ln -sfn other link; readlink link
      mv installed moved; mv -n "$t" moved; mv "$d" dir; mv moved dir/; mv dir/moved "$SCRATCH/out"; mv "$SCRATCH/out" back
      stat -c '%a %u %g' back; cat back
      touch -d 2001-02-03T04:05:06.123456789 back; stat -c %.9Y back
      truncate -s 5000 sparse; stat -c %s sparse; truncate -s -1 sparse; truncate -s '>6000' sparse; stat -c %s sparse
      printf abcdefghij > dd; printf XY | dd of=dd bs=1 seek=3 conv=notrunc status=none; cat dd; echo
      dd if=/dev/zero of=dd bs=4k count=2 oflag=append conv=notrunc,fsync status=none; stat -c %s dd
      printf x | dd of=dd bs=1 seek=100000 conv=notrunc status=none; stat -c %s dd; tail -c 2 dd | od -An -tx1
      dd if=dd of=copy bs=512 iflag=direct oflag=direct status=none; cmp dd copy
      printf y | tee -a t1 t2 t2 | cat; cat t1 t2; echo; cp --reflink=auto --sparse=always copy copy2; cmp copy copy2; sync back .`);
    assert.equal(
      said,
      '600 0\n700\n2750 1000 1001 5\ninstalled\ndata\nother\n2750 1000 1001\ndata\n981173106.123456789\n5000\n6000\n' +
        'abcXYfghij\n8202\n100001\n 00 78\nyyyy\n',
    );
  });

  test('find, du, df, ls, stat and tree walks agree about what is there', async () => {
    const said = await mount.sh(`
      mkdir -p a/b/c; for i in $(seq 300); do echo $i > a/f$i; done; head -c 100000 /dev/zero > a/b/big; ln -s ../f1 a/b/l
      find . -type f | wc -l; find . -type d | wc -l; find . -type l | wc -l; find a -name 'f29?' -newer a/f1 | wc -l
      ls -U a | wc -l; ls -laR a | grep -c f; du -sb --apparent-size a; find a -type f -printf '%s\\n' | awk '{ s += $1 } END { print s }'
      stat -c '%h %F' a a/f1 a/b/l
      echo $(df --output=fstype,size,itotal . | tail -1); stat -f -c '%l %s' .
      find a -delete; ls -A`);
    assert.equal(
      said,
      '301\n4\n1\n10\n301\n301\n101097\t' +
        'a\n101092\n1 directory\n1 regular file\n1 symbolic link\nfuse.porthole 65536 20000\n255 4096\n',
    );
  });

  test('flock, fcntl locks and O_EXCL lock out who comes second', async () => {
    const said = await mount.sh(`
      : > lock; exec 9> lock; flock 9
      flock -n lock true && echo taken || echo busy
      flock -w 20 lock echo got & flock -u 9; wait
      exec 9>&-
      python3 - <<'X'
import fcntl, os
f = open('lock', 'r+b'); fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 0)
child = os.fork()
if child == 0:
    g = open('lock', 'r+b')
    for start in (0, 10):
        try: fcntl.lockf(g, fcntl.LOCK_EX | fcntl.LOCK_NB, 5, start); print(start, 'got', flush=True)
        except OSError: print(start, 'busy', flush=True)
    os._exit(0)
os.waitpid(child, 0)
X
      for p in 1 2 3 4 5 6 7 8; do (mkdir once 2> /dev/null && echo mkdir; (set -C; : > excl) 2> /dev/null && echo excl) & done; wait
      for p in 1 2 3 4; do (for i in $(seq 20); do flock lock sh -c 'n=$(cat n 2> /dev/null || echo 0); echo $((n + 1)) > n'; done) & done; wait; cat n`);
    assert.deepEqual(said.split('\n').slice(0, 4), ['busy', 'got', '0 busy', '10 got']);
    assert.deepEqual(said.split('\n').slice(4, 6).toSorted(), ['excl', 'mkdir']);
    assert.deepEqual(said.split('\n').slice(6), ['80', '']);
  });

  test('python’s tempfile, shutil, os.replace, mmap and copy_file_range work, and shared maps are ENODEV', async () => {
    const said = await mount.sh(`python3 - <<'X'
import errno, mmap, os, shutil, socket, tempfile
with tempfile.NamedTemporaryFile(dir='.') as f: f.write(b'x' * 10); f.flush(); print(os.stat(f.name).st_size)
with tempfile.TemporaryFile(dir='.') as f: f.write(b'unlinked'); f.seek(0); print(f.read(), os.fstat(f.fileno()).st_nlink)
with tempfile.TemporaryDirectory(dir='.') as d: open(d + '/x', 'w').write('1'); shutil.copytree(d, 'copied')
shutil.move('copied', 'moved'); print(os.listdir('moved')); shutil.rmtree('moved')
open('new', 'w').write('2'); fd = os.open('new', os.O_RDONLY); os.fsync(fd); os.replace('new', 'final'); print(open('final').read())
d = os.open('.', os.O_RDONLY); os.fsync(d)
f = open('map', 'w+b'); f.write(b'abc'); f.flush()
def attempt(what, f):
    try: print(what, f())
    except OSError as e: print(what, errno.errorcode[e.errno])
attempt('private', lambda: bytes(mmap.mmap(f.fileno(), 3, flags=mmap.MAP_PRIVATE)))
attempt('shared', lambda: mmap.mmap(f.fileno(), 3, flags=mmap.MAP_SHARED))
attempt('copy_file_range', lambda: os.copy_file_range(f.fileno(), os.open('cfr', os.O_CREAT | os.O_RDWR), 3, 0, 0))
attempt('fallocate', lambda: os.posix_fallocate(f.fileno(), 0, 5000) or os.fstat(f.fileno()).st_size)
attempt('O_TMPFILE', lambda: os.open('.', os.O_TMPFILE | os.O_RDWR))
attempt('link', lambda: os.link('map', 'map2'))
attempt('mkfifo', lambda: os.mkfifo('fifo'))
attempt('socket', lambda: socket.socket(socket.AF_UNIX).bind('socket'))
attempt('user.x', lambda: os.setxattr('map', 'user.x', b'1'))
attempt('name', lambda: open(b'\\xff', 'w'))
attempt('1 MiB', lambda: os.pwrite(f.fileno(), b'x', (1 << 20) - 1))
attempt('more', lambda: os.pwrite(f.fileno(), b'x', 1 << 20))
attempt('long', lambda: open('x' * 256, 'w'))
os.mkdir('gone'); g = os.open('gone', os.O_RDONLY); os.rmdir('gone')
attempt('fstat', lambda: os.fstat(g).st_nlink)
attempt('listdir', lambda: os.listdir(g))
attempt('create', lambda: os.open('x', os.O_CREAT | os.O_WRONLY, dir_fd=g))
X`);
    assert.equal(
      said,
      `10
b'unlinked' 0
['x']
2
private b'abc'
shared ENODEV
copy_file_range 3
fallocate 5000
O_TMPFILE ENOTSUP
link EPERM
mkfifo EPERM
socket EPERM
user.x ENOTSUP
name EILSEQ
1 MiB 1
more EFBIG
long ENAMETOOLONG
fstat 0
listdir []
create ENOENT
`,
    );
  });

  test('inotifywait tells of what is done through the mount', async () => {
    const said = await mount.sh(`
      mkdir d; inotifywait -q -m d --format '%e %f' > events 2> /dev/null & watcher=$!
      until grep -q "^inotify wd" /proc/$watcher/fdinfo/* 2> /dev/null; do :; done
      echo a > d/f; echo b >> d/f; cat d/f > /dev/null; mv d/f d/g; ln -s x d/l; chmod 600 d/g; mkdir d/s; rm d/g; touch d/end
      until grep -q 'end$' events; do :; done; kill $watcher
      sed '/end$/,$d; /^OPEN/d; /^CLOSE_NOWRITE/d' events`);
    assert.equal(
      said,
      `CREATE f
MODIFY f
CLOSE_WRITE,CLOSE f
MODIFY f
CLOSE_WRITE,CLOSE f
ACCESS f
MOVED_FROM f
MOVED_TO g
CREATE l
ATTRIB g
CREATE,ISDIR s
DELETE g
`,
    );
  });
});
