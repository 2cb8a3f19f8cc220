import type { ComponentChildren, JSX } from 'preact';
import type { Vm } from '../api.ts';
import { operations } from '../live.ts';
import { OperationBadge } from '../ui/badge.tsx';
import { VmPage } from '../ui/vm-page.tsx';
import { sizeWord, timeWord } from '../ui/words.ts';
import type { ViewProps } from './index.ts';

export default function VmView({ params }: ViewProps): JSX.Element {
  return <VmPage name={params['name']!}>{(vm) => <Summary vm={vm} />}</VmPage>;
}

type Fact = readonly [string, ComponentChildren];

/** Of a machine of ours; an attached one is whoever's runs it. */
const machineFactsOf = (vm: Vm): readonly Fact[] => [
  ['Type', `${vm.type} (${vm.vcpus} vCPU, ${vm.memoryMiB} MiB)`],
  ['Image', vm.image === undefined ? 'none' : `${vm.image.name}@${vm.image.version}`],
  ['Disk', vm.diskBytes === undefined ? 'as the image' : `${sizeWord(vm.diskBytes)}, ${vm.disk}`],
  ['Network', vm.network.mode],
  ['Addresses', vm.addresses.length === 0 ? 'none of its own' : vm.addresses.join(', ')],
];

const factsOf = (vm: Vm): readonly Fact[] => [
  ...(vm.kind === 'attached' ? [['Type', 'attached'] as const] : machineFactsOf(vm)),
  ['Host', vm.host],
  [
    'Labels',
    Object.entries(vm.labels)
      .map(([key, value]) => `${key}=${value}`)
      .join(' ') || 'none',
  ],
  ['Restart', vm.restartWhere === 'elsewhere' ? `${vm.restart}, elsewhere when its host is lost` : vm.restart],
  ['Boots', `${vm.bootNumber}${vm.bootId === undefined ? '' : `, the last one ${vm.bootId}`}`],
  ['Token of the boot', vm.metadataServer?.token?.state ?? 'no metadata server'],
  ['Made', timeWord(vm.createdAt)],
  ['Id', vm.id],
];

const Summary = ({ vm }: { readonly vm: Vm }): JSX.Element => {
  const own = operations.value.filter(({ target }) => target.name === vm.name);
  return (
    <div class="columns">
      <section class="card" aria-labelledby="facts">
        <h2 id="facts">What it is</h2>
        <dl class="facts">
          {factsOf(vm).map(([what, value]) => (
            <div key={what}>
              <dt>{what}</dt>
              <dd>{value}</dd>
            </div>
          ))}
        </dl>
      </section>
      <section class="card" aria-labelledby="recent">
        <h2 id="recent">What is being done</h2>
        {own.length === 0 ? (
          <p class="count">Nothing at the moment.</p>
        ) : (
          <ul class="rows">
            {own.map(({ id, kind, state, step, error }) => (
              <li key={id}>
                <OperationBadge state={state} /> {kind} <span class="count">{error?.detail ?? step}</span>
              </li>
            ))}
          </ul>
        )}
      </section>
    </div>
  );
};
