/** Names that are nearly right: what was probably meant. */

import { ClientError } from '../cluster/client/index.ts';
import { nearest } from '../host/index.ts';
import { vmNamePattern } from '../records/index.ts';
import { type Api, reworded } from './api.ts';
import type { Directory } from './shapes.ts';
import { UsageError } from './usage-error.ts';

/** Runs what is about one VM; where there is no such VM, says which one may be meant. */
export const withVm = async <T>(api: Api, name: string, work: () => Promise<T>): Promise<T> => {
  if (!vmNamePattern.test(name))
    throw new UsageError(`"${name}" is no name of a virtual machine: these have a-z, 0-9 and "-", at most 63 of them`);
  try {
    return await work();
  } catch (error) {
    if (!(error instanceof ClientError)) throw error;
    const hint = await hintFor(api, name, error).catch(() => undefined);
    throw hint === undefined ? error : reworded(error, `${error.message}; ${hint}`);
  }
};

const hintFor = async (api: Api, name: string, error: ClientError): Promise<string | undefined> => {
  if (error.code !== 'VM_NOT_FOUND') return undefined;
  const names = await vmNames(api);
  if (names.length === 0) return 'there is none yet; "porthole vm create" makes one';
  const near = nearest(name, names);
  return near === undefined ? '"porthole vm ls" lists them' : `did you mean "${near}"?`;
};

/** As `withVm`, for the image that a machine is made from. */
export const withImage = async <T>(api: Api, name: string, work: () => Promise<T>): Promise<T> => {
  try {
    return await work();
  } catch (error) {
    if (!(error instanceof ClientError && error.code === 'NOT_FOUND')) throw error;
    const images = await api.call('listImages').then(
      (answer) => answer.images.map((image) => image.name),
      () => [],
    );
    const near = nearest(name, images);
    const hint = near === undefined ? '"porthole image ls" lists them' : `did you mean "${near}"?`;
    throw reworded(error, `${error.message}; ${hint}`);
  }
};

export const vmNames = async (api: Api): Promise<string[]> => {
  const names: string[] = [];
  for await (const { vms } of api.pages('listVms', { limit: 500 })) {
    names.push(...vms.map((vm) => vm.name));
    if (names.length > 5_000) break;
  }
  return names;
};

/** As `withVm`, for a path of its tree. */
export const withPath = async <T>(api: Api, name: string, path: string, work: () => Promise<T>): Promise<T> => {
  try {
    return await withVm(api, name, work);
  } catch (error) {
    if (!(error instanceof ClientError && error.code === 'PATH_NOT_FOUND')) throw error;
    const near = await siblingNear(api, name, path).catch(() => undefined);
    throw near === undefined ? error : reworded(error, `${error.message}; did you mean "${near}"?`);
  }
};

/** Name by name from the root: the first that is not there is the one that was mistyped. */
const siblingNear = async (api: Api, vm: string, path: string): Promise<string | undefined> => {
  const names = path.split('/').slice(1);
  for (let i = 0; i < names.length; i++) {
    const parent = `/${names.slice(0, i).join('/')}`;
    const { entries } = (await api.call('readMetadata', { params: { name: vm, path: parent } })) as Directory;
    const known = entries.map((entry) => entry.path.slice(entry.path.lastIndexOf('/') + 1));
    if (known.includes(names[i]!)) continue;
    const near = nearest(names[i]!, known);
    return near && `/${[...names.slice(0, i), near, ...names.slice(i + 1)].join('/')}`;
  }
  return undefined;
};
