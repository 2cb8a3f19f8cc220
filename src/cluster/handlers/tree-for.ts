/** The tree of a VM, asked of the host that has it. */
import type { Context } from 'hono';
import type { TreePort } from '../../records/index.ts';
import { type Api, type Env, identityOf } from './serve.ts';

/** VM_NOT_FOUND, at each call, for a VM that whoever asks does not have. */
export const treeFor = (api: Api, c: Context<Env>, name: string): TreePort => {
  const { vms, kit } = api.manager;
  const { account } = identityOf(c);
  const on =
    <K extends keyof TreePort>(method: K) =>
    (...args: unknown[]): ReturnType<TreePort[K]> =>
      vms.ask(account, name, async (vm) => {
        const tree = kit.host.tree(vm);
        return Reflect.apply(tree[method] as (...all: unknown[]) => Promise<unknown>, tree, args);
      }) as ReturnType<TreePort[K]>;
  return {
    stat: on('stat'),
    list: on('list'),
    read: on('read'),
    walk: on('walk'),
    edit: on('edit'),
    export: on('export'),
    import: on('import'),
    policy: on('policy'),
    setPolicy: on('setPolicy'),
    explain: on('explain'),
    view: on('view'),
    comparePolicy: on('comparePolicy'),
    watch: on('watch'),
    applied: on('applied'),
  };
};
