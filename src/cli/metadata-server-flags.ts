/** The options of `vm create` and `vm attach` that give a VM a metadata server. */
import { type Command, InvalidArgumentError, Option } from 'commander';
import { type MetadataWayName, metadataClouds } from '../records/index.ts';
import { collect, parseCount } from './command.ts';
import type { NewVm } from './shapes.ts';
import { UsageError } from './usage-error.ts';

type Cloud = (typeof metadataClouds)[number];

export interface MetadataServerFlags {
  readonly metadataServer?: readonly MetadataWayName[];
  readonly hopLimit?: number;
  readonly facade?: readonly Cloud[];
  readonly imdsV1?: true;
}

/** `choices` of commander take one value only. */
const oneOf =
  (choices: readonly string[]) =>
  (value: string, before?: readonly string[]): readonly string[] => {
    if (!choices.includes(value)) throw new InvalidArgumentError(`Allowed choices are ${choices.join(', ')}.`);
    return collect(value, before);
  };

/** `ways`: what the machine can be reached by, with words for each. */
export const metadataServerOptions = (
  command: Command,
  ways: Readonly<Partial<Record<MetadataWayName, string>>>,
): Command => {
  const words = Object.entries(ways).map(([way, where]) => `${way} (${where})`);
  return command
    .addOption(
      new Option('--metadata-server <way>', `also a metadata server, by ${words.join(', ')} (any number of times)`)
        .choices(Object.keys(ways))
        .argParser(oneOf(Object.keys(ways))),
    )
    .addOption(
      new Option('--facade <cloud>', "the metadata server shows this cloud's API only (any number of times)")
        .choices(metadataClouds)
        .argParser(oneOf(metadataClouds)),
    )
    .option('--imds-v1', 'it answers EC2 requests without a session too');
};

export const hopLimitOption = (): Option =>
  new Option('--hop-limit <count>', 'hops that its answers may travel on --tap; default: 1').argParser(
    parseCount(1, 255),
  );

/** What the API is asked for. UsageError. */
export const metadataServerOf = (flags: MetadataServerFlags): Pick<NewVm, 'metadataServer' | 'vsock'> => {
  const { metadataServer: ways, hopLimit, facade: facades, imdsV1 } = flags;
  if (ways === undefined) {
    const alone = Object.entries({ '--hop-limit': hopLimit, '--facade': facades, '--imds-v1': imdsV1 }).find(
      ([, value]) => value !== undefined,
    );
    if (alone !== undefined) throw new UsageError(`${alone[0]} is for a metadata server: add --metadata-server`);
    return {};
  }
  return {
    metadataServer: {
      ways: [...new Set(ways)],
      ...(hopLimit !== undefined && { hopLimit }),
      ...(facades !== undefined && { facades: [...new Set(facades)] }),
      ...(imdsV1 && { imdsV1 }),
    },
    // It is what the way leads over.
    ...(ways.includes('vsock') && { vsock: true }),
  };
};
