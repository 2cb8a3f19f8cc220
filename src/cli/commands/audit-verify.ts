/** `porthole audit verify`: whether the audit logs of hosts are as they were written. */
import { readFileSync } from 'node:fs';
import type { Command } from 'commander';
import { z } from 'zod';
import type { ResultOf } from '../../cluster/index.ts';
import { printable } from '../../wire/index.ts';
import type { Api } from '../api.ts';
import { apiCommand, collect, examples, type Shell } from '../command.ts';
import { exitCodes } from '../exit-code.ts';
import { UsageError } from '../usage-error.ts';

interface VerifyFlags {
  readonly host?: readonly string[];
  readonly noted?: string;
  readonly json?: true;
}

type Problem = ResultOf<'checkAudit'>['problems'][number];

/** What is printed of a host as JSON, and read again later. */
interface Checked {
  readonly region: string;
  readonly host: string;
  readonly records: number;
  readonly problems: readonly Problem[];
  readonly last: string;
}

const Noted = z.object({ region: z.string(), host: z.string(), last: z.string() });

export const auditVerifyCommand = (audit: Command, shell: Shell): void => {
  apiCommand(audit, 'verify', 'check that no record was changed, taken out or moved')
    .option('--host <host>', 'of this host only (any number of times)', collect)
    .option(
      '--noted <file>',
      'what an earlier check printed with --json: checks from there on, and that it is still so',
    )
    .option('--json', 'print a JSON line for each host')
    .addHelpText(
      'after',
      `
Each record has a hash over it and all before it. Whoever may write to a host's
disk can make all of them anew: keep what --json prints on another machine, and
give it to --noted the next time.

${examples(
  'porthole audit verify --region eu,us',
  'porthole audit verify --json > noted.jsonl',
  'porthole audit verify --noted noted.jsonl',
).trimStart()}`,
    )
    .action((flags: VerifyFlags) => {
      // Options that both have are taken for the command above.
      const { json, ...others } = audit.opts<Pick<VerifyFlags, 'json'>>();
      if (Object.keys(others).length > 0)
        throw new UsageError('whole logs are checked; leave out the options that choose records');
      return verify(shell, { ...flags, ...(json && { json }) });
    });
};

const verify = async ({ terminal, apis, setExitCode }: Shell, flags: VerifyFlags): Promise<void> => {
  const noted = flags.noted === undefined ? new Map<string, string>() : readNoted(flags.noted);
  const failed = (words: string): void => {
    terminal.err(`${words}\n`);
    setExitCode(exitCodes.failed);
  };
  for (const api of apis()) {
    const [{ regions }, { hosts }] = await Promise.all([api.call('listRegions'), api.call('listHosts')]);
    const region = regions.find(({ isHere }) => isHere)?.name ?? '';
    const names = hosts.map(({ name }) => name);
    const unknown = flags.host?.find((name) => !names.includes(name));
    if (unknown !== undefined) throw new UsageError(`the region "${region}" has no host "${unknown}"`);
    for (const host of flags.host ?? names) {
      const where = `${region}/${host}`;
      try {
        const checked = await check(api, region, host, noted.get(where));
        if (flags.json === true) terminal.out(`${JSON.stringify(checked)}\n`);
        else terminal.out(`${where}: ${wordsOf(checked, noted.has(where))}\n`);
        for (const { file, line, what } of checked.problems)
          failed(`${where}: ${printable(file)}${line === 0 ? '' : `:${line}`}: ${printable(what)}`);
      } catch (error) {
        failed(`${where} was not checked: ${(error as Error).message}`);
      }
    }
  }
};

const wordsOf = ({ records, problems, last }: Checked, isFromNoted: boolean): string => {
  const which = isFromNoted ? ' since what was noted' : '';
  const count = `${records} ${records === 1 ? 'record' : 'records'}${which}`;
  if (problems.length > 0) return `${count}, NOT as they were written`;
  return `${count}, all as they were written, up to ${last}`;
};

const check = async (api: Api, region: string, host: string, noted: string | undefined): Promise<Checked> => {
  let records = 0;
  const problems: Problem[] = [];
  for (let after = noted; ; ) {
    const query = after === undefined ? {} : { after };
    const part = await api.call('checkAudit', { params: { host }, query });
    records += part.records;
    problems.push(...part.problems);
    if (part.isEnd) return { region, host, records, problems, last: part.last };
    if (after !== undefined && sequenceOf(part.last) <= sequenceOf(after))
      throw new Error('the host says that there is more, and gives nothing');
    after = part.last;
  }
};

const sequenceOf = (link: string): number => Number(link.split('.', 1)[0]);

/** UsageError. */
const readNoted = (file: string): Map<string, string> => {
  try {
    const lines = readFileSync(file, 'utf8').split('\n').filter(Boolean);
    const noted = lines.map((line) => Noted.parse(JSON.parse(line)));
    return new Map(noted.map(({ region, host, last }) => [`${region}/${host}`, last]));
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    const why = code ?? 'it is not what "porthole audit verify --json" prints';
    throw new UsageError(`reading what was noted, "${file}", failed: ${why}`);
  }
};
