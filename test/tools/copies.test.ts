import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { ServedMount } from './served-mount.ts';
import { sourceTree } from './source-tree.ts';

describe('copies, archives and version control on a mount', () => {
  let mount: ServedMount;
  before(async () => {
    mount = await ServedMount.start();
  });
  after(() => mount[Symbol.asyncDispose]());

  test('cp -a, mv over another file system and back, tar and rsync keep ids, modes, times, ACLs, links and bytes', async () => {
    const said = await mount.sh(`${sourceTree}
      cp -a src cp; same src cp
      tar --acls --xattrs -C src -cf t.tar .; mkdir tar; tar --acls --xattrs -C tar -xpf t.tar; same src tar; tar -C src -df t.tar && echo no difference
      rsync -aAX src/ rsync; same src rsync; rsync -aAXcni --delete src/ rsync/
      rsync -aAX src/ "$SCRATCH/rsync"; rsync -aAX --inplace "$SCRATCH/rsync/" back; same src back
      cp -a src moved; mv moved "$SCRATCH/moved"; mv "$SCRATCH/moved" moved; same src moved
      rsync -a src/ plain; echo more >> src/d/x; rm src/empty; rsync -ai --delete src/ plain | sort; rsync -aic --no-whole-file --append-verify src/ plain`);
    assert.equal(
      said,
      `same
same
no difference
same
same
same
*deleting   empty
.d..t...... ./
>f.st...... d/x
`,
    );
  });

  test('a user’s cp, tar, rsync and setfacl of own files end as on a disk, and of others’ in EPERM', async () => {
    const said = await mount.sh(
      `mkdir src; echo hi > src/a; chmod 4755 src/a; cp -r --preserve=mode,timestamps src cp; tar -cf - src | tar -C cp -xf -; rsync -rlpt src/ r
       stat -c '%a %u %n' cp/a cp/src/a r/a; setfacl -m u:114:r cp/a; getfacl -cn cp/a; echo x > cp/a; stat -c %a cp/a
       chown 0 cp/a 2>&1 || true; setfacl -m u:114:r /proc/self/root$HERE/.. 2>&1 | sed 's/.*: //'; setpriv --reuid 0 true 2> /dev/null || echo no root`,
      { uid: 1000 },
    );
    assert.equal(
      said,
      `4755 1000 cp/a
755 1000 cp/src/a
4755 1000 r/a
user::rwx
user:114:r--
group::r-x
mask::r-x
other::r-x

755
chown: changing ownership of 'cp/a': Operation not permitted
Operation not permitted
no root
`,
    );
  });

  test('getfacl, setfacl, chacl and getfattr read and write what access then follows', async () => {
    const said = await mount.sh(`
      as() { setpriv --reuid "$1" --regid "$1" --clear-groups "\${@:2}" > /dev/null 2>&1 && echo yes || echo no; }
      chmod 755 .; echo x > f; chmod 600 f; as 114 cat f; setfacl -m u:114:r,g:1001:rw f; as 114 cat f; as 114 tee f; as 1001 cat f; as 1000 cat f
      getfacl -cn f; stat -c %a f; ls -l f | cut -c1-11
      chmod g-w f; getfacl -cn f | grep -E 'mask|1001'; setfacl -x u:114 f; as 114 cat f; setfacl -b f; getfacl -cn f; stat -c %a f
      mkdir d; setfacl -d -m u:114:rwX,o::- d; umask 077; : > d/f; mkdir d/s; getfacl -cn d/f d/s; setfacl -k d; getfacl -cn d | grep -c default || true
      setfacl -m u:114:r f; getfacl -n f > saved; setfacl -b f; setfacl --restore=saved; getfacl -cn f | grep 114; chacl -l f
      getfattr -d -m - f | grep -c =; getfattr -d -m - d/s | cut -d= -f1; setfattr -x system.posix_acl_access f; getfattr -d -m - f; stat -c %a f
      getfattr -h --only-values -n system.porthole.why f; echo; getfattr -h --only-values -n system.porthole.age f; echo
      getfattr -n user.absent f 2>&1 || true; setfattr -n user.a -v 1 f 2>&1 || true; setfattr -n trusted.a -v 1 f 2>&1 || true; setfattr -n security.a -v 1 f 2>&1 || true`);
    assert.equal(
      said,
      `no
yes
no
yes
no
user::rw-
user:114:r--
group::---
group:1001:rw-
mask::rw-
other::---

660
-rw-rw----+
group:1001:rw-\t#effective:r--
mask::r--
no
user::rw-
group::---
other::---

600
user::rw-
user:114:rwx\t#effective:rw-
group::r-x\t#effective:r--
mask::rw-
other::---

user::rwx
user:114:rwx
group::r-x
mask::rwx
other::---
default:user::rwx
default:user:114:rwx
default:group::r-x
default:mask::rwx
default:other::---

0
user:114:r--
f [u::rw-,u:114:r--,g::---,m::r--,o::---]
1
# file: d/s
system.posix_acl_access
system.posix_acl_default

600
uid 0; read: allowed (mode 0600, root may); write: allowed (mode 0600, root may); rule: default
0
f: user.absent: No such attribute
setfattr: f: Operation not supported
setfattr: f: Operation not supported
setfattr: f: Operation not supported
`,
    );
  });

  test('git adds, commits, branches, merges, checks, packs, clones and cleans', async () => {
    const said = await mount.sh(
      `git init -q -b main repo; cd repo
       for i in 1 2 3; do mkdir d$i; for j in 1 2 3; do echo $i$j > d$i/f$j; done; git add .; git commit -qm $i; done
       git checkout -q -b side HEAD~1; echo side > side; git add side; git commit -qm side; git checkout -q main
       git merge -q -m merge side; git mv d1 e1; chmod +x e1/f1; ln -s side link; git add .; git commit -qm moved
       git stash list; echo dirty >> side; git stash -q; git stash pop -q; git status --short; git checkout -q side; git gc -q --prune=now; git fsck --strict --full
       git log --oneline | wc -l; find .git/objects -name '*.pack' | wc -l
       git worktree add -q ../tree HEAD~2; ls ../tree; git tag v1; git clone -q --no-local . ../clone; git -C ../clone fsck --strict; git -C ../clone log --oneline | wc -l
       git reset -q --hard; git clean -qfdx; git status --short | wc -l; cd ..; rm -rf repo clone tree; ls -A`,
      { uid: 1000 },
    );
    assert.equal(said, ' M side\n3\n1\nd1\n3\n0\n');
  });

  test('sqlite3 works with rollback journals and many writers; a write-ahead log only without its shared memory', async () => {
    const said = await mount.sh(`
      for mode in delete truncate persist memory; do
        sqlite3 $mode.db "pragma journal_mode=$mode; create table t(a); begin; insert into t values(1),(2); commit; begin; delete from t; rollback; select count(*) from t; pragma integrity_check" | tr '\\n' ' '
      done; echo
      for p in 1 2 3 4; do (for i in 1 2 3 4 5; do sqlite3 -cmd '.timeout 30000' delete.db "insert into t values($p$i)"; done) & done; wait
      sqlite3 delete.db 'select count(*) from t; pragma integrity_check' | tr '\\n' ' '; echo
      sqlite3 wal.db 'pragma journal_mode=wal; create table t(a)' 2>&1 || true
      sqlite3 exclusive.db 'pragma locking_mode=exclusive; pragma journal_mode=wal; create table t(a); insert into t values(1); select count(*) from t; pragma integrity_check' | tr '\\n' ' '; echo
      sqlite3 big.db 'create table t(a); insert into t values(zeroblob(1048576))' 2>&1 || true`);
    assert.equal(
      said,
      `delete 2 ok truncate 2 ok persist 2 ok memory 2 ok 
22 ok 
Error: stepping, disk I/O error (10)
wal
exclusive wal 1 ok 
Error: stepping, disk I/O error (10)
`,
    );
  });
});
