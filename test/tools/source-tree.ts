/** A small tree with everything that a copy has to keep, and `look DIR`, which prints all of it. */
export const sourceTree = `
  mkdir -p src/d; echo hi > src/a; echo x > src/d/x; : > src/empty; head -c 70000 /dev/urandom > src/big; ln -s a src/l
  printf 'umlaut' > "src/ü b"; chown 1000:1001 src/d/x src/a; chmod 4751 src/a; chmod 2770 src/d
  setfacl -m u:114:rw,m::rwx src/a; setfacl -d -m g:1001:rx src/d
  touch -h -d 2001-02-03T04:05:06.123456789 src/l; touch -d 2001-02-03T04:05:06.123456789 src/* src/d/x src/d src
  look() { (cd "$1"; getfacl -nPR . | sed '/^# file/s/\\/$//'; find . -printf '%p %m %U %G %T@ %s %l\\n' | sort; find . -type f -exec sha256sum {} + | sort); }
  same() { if diff <(look "$1") <(look "$2") > difference; then echo same; else cat difference; fi; }
`;
