/** What is around everything about one VM: its name and status, what can be done with it, and where else to look. */
import type { ComponentChildren, JSX } from 'preact';
import { useState } from 'preact/hooks';
import { call, type Operation, type Vm } from '../api.ts';
import { vms } from '../live.ts';
import { path } from '../router.ts';
import { may } from '../session.ts';
import { VmBadge } from './badge.tsx';
import { Dialog } from './dialog.tsx';
import { Failure, Loading } from './states.tsx';
import { complain, tell } from './toasts.tsx';

const tabs = [
  { at: '', title: 'Summary' },
  { at: '/console', title: 'Console' },
  { at: '/metadata', title: 'Metadata' },
  { at: '/policy', title: 'Policy' },
] as const;

type Action = 'start' | 'stop' | 'reboot' | 'delete';

const words: Readonly<Record<Action, { readonly word: string; readonly told: string }>> = {
  start: { word: 'Start', told: 'Starting' },
  stop: { word: 'Stop', told: 'Stopping' },
  reboot: { word: 'Reboot', told: 'Rebooting' },
  delete: { word: 'Delete', told: 'Deleting' },
};

const asked: Readonly<Record<Action, (name: string) => Promise<{ readonly operation: Operation }>>> = {
  start: (name) => call('startVm', { params: { name } }),
  stop: (name) => call('stopVm', { params: { name }, body: {} }),
  reboot: (name) => call('rebootVm', { params: { name }, body: {} }),
  delete: (name) => call('deleteVm', { params: { name } }),
};

export const VmPage = ({
  name,
  children,
}: {
  readonly name: string;
  readonly children: (vm: Vm) => ComponentChildren;
}): JSX.Element => {
  const all = vms.value;
  const vm = all?.find((one) => one.name === name);
  if (all === undefined) return <Loading what={name} />;
  if (vm === undefined)
    return <Failure title={`There is no VM “${name}”`} detail="It was deleted, or your key may not see it." />;
  const base = `/vms/${encodeURIComponent(name)}`;
  return (
    <div class="view">
      <div class="view-head">
        <h1>{name}</h1>
        <VmBadge status={vm.status} />
        {vm.reason !== '' && <span class="count">{vm.reason}</span>}
        {may('operator') && <Actions vm={vm} />}
      </div>
      <nav class="tabs" aria-label={`About ${name}`}>
        {tabs.map(({ at, title }) => (
          <a key={at} href={`${base}${at}`} aria-current={path.value === `${base}${at}` ? 'page' : undefined}>
            {title}
          </a>
        ))}
      </nav>
      {children(vm)}
    </div>
  );
};

const Actions = ({ vm }: { readonly vm: Vm }): JSX.Element => {
  const [deleting, setDeleting] = useState(false);
  const run = async (action: Action): Promise<void> => {
    setDeleting(false);
    try {
      const { operation } = await asked[action](vm.name);
      tell(`${words[action].told} ${vm.name}`, operation);
    } catch (error) {
      complain(`${words[action].word} failed`, error);
    }
  };
  const offered: readonly Action[] = vm.kind === 'attached' ? ['delete'] : ['start', 'stop', 'reboot', 'delete'];
  const isOff = vm.desired === 'stopped';
  const may = { start: isOff, stop: !isOff, reboot: !isOff, delete: true };
  return (
    <div class="group" role="group" aria-label={`Actions on ${vm.name}`}>
      {offered.map((action) => (
        <button
          type="button"
          key={action}
          class={action === 'delete' ? 'danger-quiet' : ''}
          disabled={!may[action]}
          onClick={() => (action === 'delete' ? setDeleting(true) : void run(action))}
        >
          {words[action].word}
        </button>
      ))}
      {deleting && (
        <Dialog
          title={`Delete ${vm.name}?`}
          action={`Delete ${vm.name}`}
          isDangerous
          onAction={() => void run('delete')}
          onCancel={() => setDeleting(false)}
        >
          <p>Its disk and its metadata go with it. This can’t be undone.</p>
        </Dialog>
      )}
    </div>
  );
};
