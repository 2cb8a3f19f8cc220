/** The sections `users`, `groups`, `policy`, `quota` and `ninep`. */

import { basename } from 'node:path';
import {
  defaultQuota,
  type Group,
  limits,
  type PolicySpec,
  type Quota,
  type Rule,
  type RuleAclEntry,
} from '../tree/index.ts';
import { nearest } from './near-miss.ts';
import {
  type Entry,
  isMap,
  isScalar,
  isSeq,
  join,
  kindOf,
  type Node,
  type SpecDocument,
  textOf,
} from './spec-document.ts';
import { readDuration, readInstant, readSize } from './spec-units.ts';

/** uids and gids that stand for "none" on Linux. */
const noId = 0xffff_ffff;
const rulesAllowed = 10_000;

export interface PolicySections {
  readonly users: Entry | undefined;
  readonly groups: Entry | undefined;
  readonly policy: Entry | undefined;
  readonly quota: Entry | undefined;
  readonly ninep: Entry | undefined;
}

export const readPolicy = (document: SpecDocument, sections: PolicySections): PolicySpec =>
  new PolicyReader(document).read(sections);

type RuleReader = (reader: PolicyReader, node: Node | null, path: string) => Partial<Rule> | undefined;

/** One reader per key of a rule. `docs/spec-file.md` describes each; a test holds it to that. */
const ruleKeys: Readonly<Record<string, RuleReader>> = {
  path: (r, node, path) => wrap('path', r.glob(node, path)),
  owner: (r, node, path) => wrap('owner', r.user(node, path)),
  group: (r, node, path) => wrap('group', r.group(node, path)),
  mode: (r, node, path) => wrap('mode', r.mode(node, path)),
  acl: (r, node, path) => wrap('acl', r.acl(node, path)),
  root: (r, node, path) => wrap('root', r.choice(node, path, ['allow', 'deny'])),
  decide: (r, node, path) => wrap('decide', r.choice(node, path, ['kernel', 'host'])),
  hidden: (r, node, path) => wrap('hidden', r.boolean(node, path)),
  program: (r, node, path) => wrap('program', r.list(node, path, programOf)),
  unit: (r, node, path) => wrap('unit', r.list(node, path, unitOf)),
  once: (r, node, path) => wrap('once', r.boolean(node, path)),
  writeOnce: (r, node, path) => wrap('writeOnce', r.boolean(node, path)),
  from: (r, node, path) => wrap('fromMs', r.unit(node, path, readInstant, dateFix)),
  until: (r, node, path) => wrap('untilMs', r.unit(node, path, readInstant, dateFix)),
  maxStale: (r, node, path) => wrap('maxStaleMs', r.unit(node, path, readDuration, durationFix)),
  facade: (r, node, path) => wrap('facade', r.boolean(node, path)),
  durable: (r, node, path) => wrap('durable', r.choice(node, path, ['cluster', 'host', 'none'])),
  quota: (r, node, path) => wrap('quota', r.quota(node, path)),
};

export const ruleKeyNames: readonly string[] = Object.keys(ruleKeys);
export const quotaKeyNames: readonly string[] = ['bytes', 'nodes'];
export const ninepKeyNames: readonly string[] = ['mountUser'];
export const groupKeyNames: readonly string[] = ['gid', 'members'];

const dateFix = 'write "2026-12-31" (midnight UTC) or "2026-12-31T18:00:00Z"';
const durationFix = 'write a number and a unit: 500ms, 90s, 15m, 1h, 1h30m, 7d';

const wrap = <K extends keyof Rule>(key: K, value: Rule[K] | undefined): Partial<Rule> | undefined =>
  value === undefined ? undefined : ({ [key]: value } as Partial<Rule>);

class PolicyReader {
  readonly #document: SpecDocument;
  readonly #users = new Map<string, number>([['root', 0]]);
  readonly #groups = new Map<string, Group>([['root', { gid: 0 }]]);

  constructor(document: SpecDocument) {
    this.#document = document;
  }

  read(sections: PolicySections): PolicySpec {
    for (const entry of this.#sectionEntries(sections.users, 'users')) {
      const path = join('users', entry.name);
      if (!this.#nameFits(entry, path)) continue;
      const uid = this.id(entry.value, path, 'uid');
      if (uid !== undefined) this.#users.set(entry.name, uid);
    }
    for (const entry of this.#sectionEntries(sections.groups, 'groups')) {
      const path = join('groups', entry.name);
      if (!this.#nameFits(entry, path)) continue;
      const group = this.#groupOf(entry, path);
      if (group !== undefined) this.#groups.set(entry.name, group);
    }
    const quota = { ...defaultQuota, ...(sections.quota && this.quota(sections.quota.value, 'quota')) };
    const rules = this.#rules(sections.policy);
    const ninepMountUid = sections.ninep && this.#mountUid(sections.ninep.value, 'ninep');
    return {
      rules,
      users: Object.fromEntries(this.#users),
      groups: Object.fromEntries(this.#groups),
      quota,
      ...(ninepMountUid !== undefined && { ninepMountUid }),
    };
  }

  #mountUid(written: Node | null, path: string): number | undefined {
    const node = this.#document.mapAt(written, path, 'a mapping', 'write { mountUser: root }');
    if (node === undefined) return undefined;
    const [entry] = this.#document.knownEntries(node, path, ninepKeyNames);
    return entry && this.user(entry.value, join(path, entry.name));
  }

  #sectionEntries(section: Entry | undefined, path: string): readonly Entry[] {
    if (section === undefined) return [];
    const node = this.#document.resolve(section.value, path);
    if (node === undefined || isNothing(node)) return [];
    if (isMap(node)) return this.#document.entries(node, path);
    this.#document.error(node, path, `${kindOf(node)} where a mapping must stand`, `write ${path}: { name: number }`);
    return [];
  }

  #nameFits(entry: Entry, path: string): boolean {
    if (/^[a-z_][a-z0-9_.-]{0,30}\$?$/i.test(entry.name)) return true;
    const fix = 'a letter or "_", then letters, digits, "_", "-" and ".", at most 32';
    this.#document.error(
      entry.key,
      path,
      `${JSON.stringify(entry.name.slice(0, 80))} is no name of a user or group`,
      fix,
    );
    return false;
  }

  #groupOf(entry: Entry, path: string): Group | undefined {
    const node = this.#document.resolve(entry.value, path);
    if (node === undefined) return undefined;
    if (!isMap(node)) {
      const gid = this.id(node, path, 'gid');
      return gid === undefined ? undefined : { gid };
    }
    let gid: number | undefined;
    let members: readonly number[] | undefined;
    let gidGiven = false;
    for (const key of this.#document.knownEntries(node, path, groupKeyNames)) {
      const at = join(path, key.name);
      if (key.name === 'gid') {
        gidGiven = true;
        gid = this.id(key.value, at, 'gid');
      } else members = this.#members(key.value, at);
    }
    if (!gidGiven) this.#document.error(entry.key, path, 'a group needs its gid', 'write { gid: 115, members: [app] }');
    if (gid === undefined) return undefined;
    return members === undefined ? { gid } : { gid, members };
  }

  #members(written: Node | null, path: string): readonly number[] | undefined {
    const node = this.#document.listAt(written, path, 'a list', 'write [app, 1001]');
    if (node === undefined) return undefined;
    const members = node.items.map((item, i) => this.user(item as Node | null, join(path, i)));
    return [...new Set(members.filter((member) => member !== undefined))];
  }

  #rules(section: Entry | undefined): readonly Rule[] {
    if (section === undefined) return [];
    const node = this.#document.resolve(section.value, 'policy');
    if (node === undefined || isNothing(node)) return [];
    if (!isSeq(node)) {
      this.#document.error(
        node,
        'policy',
        `${kindOf(node)} where a list of rules must stand`,
        'write - { path: /secrets/db, owner: app, mode: "0400" }',
      );
      return [];
    }
    if (node.items.length > rulesAllowed) {
      this.#document.error(node, 'policy', `${node.items.length} rules; ${rulesAllowed} are allowed`, 'use globs');
      return [];
    }
    const setBy = new Map<string, string>();
    const rules: Rule[] = [];
    for (const [i, item] of node.items.entries()) {
      const rule = this.#rule(item as Node | null, join('policy', i), setBy);
      if (rule !== undefined) rules.push(rule);
    }
    return rules;
  }

  /** `setBy` tells where a path's key was set, so that no two rules set the same key of the same path. */
  #rule(written: Node | null, path: string, setBy: Map<string, string>): Rule | undefined {
    const fix = 'write { path: /secrets/db, owner: app, mode: "0400" }';
    const node = this.#document.mapAt(written, path, 'a rule', fix);
    if (node === undefined) return undefined;
    const line = this.#document.lineOf(written ?? node);
    const read: { path?: string } & Partial<Rule> = {};
    const entries = this.#document.knownEntries(node, path, ruleKeyNames);
    for (const entry of entries) Object.assign(read, ruleKeys[entry.name]!(this, entry.value, join(path, entry.name)));
    if (!entries.some((entry) => entry.name === 'path')) {
      this.#document.error(
        node,
        path,
        'a rule needs a path',
        'write path: /secrets/db; "*" stands for any name, "**" for any number of names',
      );
    }
    if (entries.length === 1 && entries[0]!.name === 'path')
      this.#document.warn(node, path, 'the rule sets nothing', `keys: ${ruleKeyNames.slice(1).join(', ')}`);
    if (read.fromMs !== undefined && read.untilMs !== undefined && read.fromMs >= read.untilMs) {
      this.#document.error(
        node,
        join(path, 'until'),
        'the window ends before it begins',
        'until must be later than from',
      );
    }
    if (read.path === undefined) return undefined;
    for (const entry of entries) {
      const setting = `${entry.name} ${read.path}`;
      const earlier = setBy.get(setting);
      if (earlier === undefined) setBy.set(setting, `${path}, line ${this.#document.lineOf(entry.key)}`);
      else if (entry.name !== 'path') {
        const what = `"${entry.name}" of ${read.path} is set already by ${earlier}`;
        this.#document.error(entry.key, join(path, entry.name), what, 'keep one of the two');
      }
    }
    return { ...read, path: read.path, source: `${basename(this.#document.file)}:${line}` };
  }

  // The readers of single values: each adds a problem and answers undefined when the value is wrong.

  /** The text of a scalar that must not be empty. */
  #text(
    written: Node | null,
    path: string,
    fix: string,
  ): { readonly node: Node; readonly value: string; readonly plain: boolean } | undefined {
    const node = this.#document.resolve(written, path);
    if (node === undefined) return undefined;
    if (isScalar(node) && node.value !== null) return { node, value: textOf(node), plain: node.type === 'PLAIN' };
    this.#document.error(node ?? written, path, `${kindOf(node)} where a value must stand`, fix);
    return undefined;
  }

  id(written: Node | null, path: string, what: 'uid' | 'gid'): number | undefined {
    const fix = `write a ${what}, a whole number from 0 to ${noId - 1}`;
    const text = this.#text(written, path, fix);
    if (text === undefined) return undefined;
    const id = parseId(text.value);
    if (id === undefined) this.#document.error(text.node, path, `${JSON.stringify(text.value)} is no ${what}`, fix);
    return id;
  }

  user(written: Node | null, path: string): number | undefined {
    return this.#named(written, path, 'user', (name) => this.#users.get(name), [...this.#users.keys()]);
  }

  group(written: Node | null, path: string): number | undefined {
    return this.#named(written, path, 'group', (name) => this.#groups.get(name)?.gid, [...this.#groups.keys()]);
  }

  #named(
    written: Node | null,
    path: string,
    what: 'user' | 'group',
    idOf: (name: string) => number | undefined,
    names: readonly string[],
  ): number | undefined {
    const text = this.#text(written, path, `write the name of a ${what} or its number`);
    if (text === undefined) return undefined;
    const id = this.#idOf(text.value, idOf);
    if (id === undefined) this.#document.error(text.node, path, ...unknownName(text.value, what, names));
    return id;
  }

  #idOf(value: string, idOf: (name: string) => number | undefined): number | undefined {
    return idOf(value) ?? parseId(value);
  }

  glob(written: Node | null, path: string): string | undefined {
    const text = this.#text(written, path, 'write an absolute path: /secrets/db');
    if (text === undefined) return undefined;
    const { value, node } = text;
    const names = value.split('/').slice(1);
    let wrong: [what: string, fix: string] | undefined;
    if (!value.startsWith('/')) wrong = ['must be absolute', `did you mean "/${value}"?`];
    else if (value !== '/' && value.endsWith('/'))
      wrong = ['ends with "/"', `write "${value.replace(/\/+$/, '') || '/'}", or "${value}**" for all below it`];
    else if (value !== '/' && names.includes('')) wrong = ['has an empty name', 'write one "/" between names'];
    else if (names.includes('.') || names.includes('..')) wrong = ['has "." or ".."', 'write the path without them'];
    else if (names.some((name) => name.includes('**') && name !== '**'))
      wrong = ['has "**" beside other characters', '"**" must be a whole name; within a name write "*"'];
    else if (names.length > limits.depth) wrong = [`has more than ${limits.depth} names`, 'shorten it'];
    else if (value.includes('\0') || !value.isWellFormed()) wrong = ['has a NUL or broken Unicode', 'remove it'];
    else if (names.some((name) => new TextEncoder().encode(name).length > limits.nameBytes))
      wrong = [`has a name of more than ${limits.nameBytes} bytes`, 'shorten it'];
    if (wrong === undefined) return value;
    this.#document.error(node, path, `path ${JSON.stringify(value)} ${wrong[0]}`, wrong[1]);
    return undefined;
  }

  mode(written: Node | null, path: string): number | undefined {
    const text = this.#text(written, path, 'write it quoted: "0400"');
    if (text === undefined) return undefined;
    const octal = /^0?[0-7]{3,4}$/.test(text.value);
    if (octal && !text.plain) return Number.parseInt(text.value, 8);
    if (octal)
      this.#document.error(
        text.node,
        path,
        `${text.value} without quotes is a decimal number in YAML`,
        `write it quoted: "${text.value}"`,
      );
    else
      this.#document.error(
        text.node,
        path,
        `${JSON.stringify(text.value)} is no mode`,
        'write octal digits in quotes, as for chmod: "0400", "1777"',
      );
    return undefined;
  }

  acl(written: Node | null, path: string): readonly RuleAclEntry[] | undefined {
    const fix = 'write ["user:postgres:r", "group:ssl-cert:rx"]';
    const node = this.#document.listAt(written, path, 'a list', fix);
    if (node === undefined) return undefined;
    if (node.items.length > limits.aclEntries) {
      this.#document.error(node, path, `${node.items.length} entries; ${limits.aclEntries} are allowed`, 'use a group');
      return undefined;
    }
    const entries: RuleAclEntry[] = [];
    for (const [i, item] of node.items.entries()) {
      const entry = this.#aclEntry(item as Node | null, join(path, i), fix);
      if (entry === undefined) continue;
      if (entries.some((other) => other.tag === entry.tag && other.id === entry.id)) {
        this.#document.error(item as Node, join(path, i), `a second entry for ${entry.tag} ${entry.id}`, 'keep one');
      } else entries.push(entry);
    }
    return entries;
  }

  #aclEntry(written: Node | null, path: string, fix: string): RuleAclEntry | undefined {
    const text = this.#text(written, path, fix);
    if (text === undefined) return undefined;
    const parts = text.value.split(':');
    const [tag, name, letters] = parts;
    if (parts.length !== 3 || (tag !== 'user' && tag !== 'group') || !/^(?=.)r?-?w?-?x?-?$/.test(letters!)) {
      this.#document.error(text.node, path, `${JSON.stringify(text.value)} is no ACL entry`, fix);
      return undefined;
    }
    const isUser = tag === 'user';
    const id = this.#idOf(name!, isUser ? (n) => this.#users.get(n) : (n) => this.#groups.get(n)?.gid);
    if (id === undefined) {
      this.#document.error(
        text.node,
        path,
        ...unknownName(name!, tag, isUser ? this.#users.keys() : this.#groups.keys()),
      );
      return undefined;
    }
    const permissions =
      (letters!.includes('r') ? 4 : 0) + (letters!.includes('w') ? 2 : 0) + (letters!.includes('x') ? 1 : 0);
    return { tag, id, permissions };
  }

  choice<T extends string>(written: Node | null, path: string, choices: readonly T[]): T | undefined {
    const fix = `write ${choices.join(' or ')}`;
    const text = this.#text(written, path, fix);
    if (text === undefined) return undefined;
    const found = choices.find((choice) => choice === text.value);
    const near = nearest(text.value, choices);
    if (found === undefined)
      this.#document.error(
        text.node,
        path,
        `${JSON.stringify(text.value)} is not one of its values`,
        near === undefined ? fix : `did you mean ${near}? ${fix}`,
      );
    return found;
  }

  boolean(written: Node | null, path: string): boolean | undefined {
    const fix = 'write true or false';
    const node = this.#document.resolve(written, path);
    if (node === undefined) return undefined;
    if (isScalar(node) && typeof node.value === 'boolean') return node.value;
    this.#document.error(
      node ?? written,
      path,
      isScalar(node) && node.value !== null
        ? `${JSON.stringify(textOf(node))} is neither true nor false`
        : `${kindOf(node)} where a value must stand`,
      fix,
    );
    return undefined;
  }

  /** One text or a list of texts, each checked by `read`, which answers undefined for what is right. */
  list(
    written: Node | null,
    path: string,
    wrong: (value: string) => string | undefined,
  ): readonly string[] | undefined {
    const node = this.#document.resolve(written, path);
    if (node === undefined) return undefined;
    const items: readonly (readonly [Node | null, string])[] = isSeq(node)
      ? node.items.map((item, i) => [item as Node | null, join(path, i)] as const)
      : [[node, path] as const];
    if (items.length === 0)
      this.#document.error(node, path, 'the list is empty', 'name one at least, or leave the key out');
    const values: string[] = [];
    for (const [item, at] of items) {
      const text = this.#text(item, at, 'write one text or a list of texts');
      if (text === undefined) continue;
      const fix = wrong(text.value);
      if (fix === undefined) values.push(text.value);
      else this.#document.error(text.node, at, `${JSON.stringify(text.value)} does not fit here`, fix);
    }
    return values;
  }

  unit(
    written: Node | null,
    path: string,
    read: (value: string) => number | undefined,
    fix: string,
  ): number | undefined {
    const text = this.#text(written, path, fix);
    if (text === undefined) return undefined;
    const value = read(text.value);
    if (value === undefined) this.#document.error(text.node, path, `${JSON.stringify(text.value)} cannot be read`, fix);
    return value;
  }

  quota(written: Node | null, path: string): Partial<Quota> | undefined {
    const node = this.#document.mapAt(written, path, 'a mapping', 'write { bytes: 16MiB, nodes: 10000 }');
    if (node === undefined) return undefined;
    const quota: { bytes?: number; nodes?: number } = {};
    for (const entry of this.#document.knownEntries(node, path, quotaKeyNames)) {
      const isBytes = entry.name === 'bytes';
      const fix = isBytes ? 'write a number of bytes or 64KiB, 16MiB, 1GiB' : 'write a whole number';
      const value = this.unit(entry.value, join(path, entry.name), isBytes ? readSize : readCount, fix);
      if (value !== undefined) quota[isBytes ? 'bytes' : 'nodes'] = value;
    }
    return quota;
  }
}

const isNothing = (node: Node | null): boolean => node === null || (isScalar(node) && node.value === null);

const parseId = (value: string): number | undefined => {
  if (!/^(0|[1-9][0-9]{0,9})$/.test(value)) return undefined;
  const id = Number(value);
  return id < noId ? id : undefined;
};

const readCount = (value: string): number | undefined =>
  /^(0|[1-9][0-9]{0,9})$/.test(value) ? Number(value) : undefined;

const unknownName = (name: string, what: 'user' | 'group', names: Iterable<string>): [what: string, fix: string] => {
  const near = nearest(name, names);
  const section = `${what}s`;
  return [
    `no ${what} ${JSON.stringify(name)}`,
    near === undefined
      ? `give its number here, or name it under "${section}": { ${/^\w[\w-]*$/.test(name) ? name : 'app'}: 1000 }`
      : `did you mean "${near}"?`,
  ];
};

const programOf = (value: string): string | undefined => {
  if (!value.startsWith('/')) return 'write the absolute path of an executable: /usr/bin/psql';
  const names = value.split('/').slice(1);
  return names.some((name) => name === '' || name === '.' || name === '..')
    ? 'write the path without "//", "." and ".."'
    : undefined;
};

const unitOf = (value: string): string | undefined =>
  /^[\w:.\\@-]+\.(service|scope|slice|socket|timer|mount|path|target|swap|device|automount)$/.test(value)
    ? undefined
    : 'write the full name of a systemd unit: postgresql.service';
