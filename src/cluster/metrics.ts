/** What Prometheus is told. Labels are routes and outcomes, never names of VMs or paths. */
import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from 'prom-client';
import type { Manager } from './manager.ts';

export class Metrics {
  readonly registry = new Registry();
  readonly requests = new Counter({
    name: 'porthole_api_requests_total',
    help: 'Requests answered, by route and status.',
    labelNames: ['method', 'route', 'status'],
    registers: [this.registry],
  });
  readonly seconds = new Histogram({
    name: 'porthole_api_request_seconds',
    help: 'Time to the head of the answer, by route.',
    labelNames: ['method', 'route'],
    buckets: [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 2.5, 10],
    registers: [this.registry],
  });
  readonly streams = new Gauge({
    name: 'porthole_api_streams',
    help: 'Event streams that are open.',
    registers: [this.registry],
  });
  readonly failedKeys = new Counter({
    name: 'porthole_api_failed_keys_total',
    help: 'Requests with a key that is not valid.',
    registers: [this.registry],
  });

  constructor(manager: Manager) {
    collectDefaultMetrics({ register: this.registry });
    const vms = new Gauge({
      name: 'porthole_vms',
      help: 'VMs, by type and status.',
      labelNames: ['type', 'status'],
      registers: [this.registry],
      collect: async () => {
        vms.reset();
        for (const { name } of await manager.accounts.list())
          for (const { type, status, count } of await manager.vms.counts(name)) vms.inc({ type, status }, count);
      },
    });
    const totals = async () => (await manager.kit.host.status()).metadataServers;
    const requests = new Counter({
      name: 'porthole_metadata_server_requests_total',
      help: 'Requests of guests to their metadata servers.',
      registers: [this.registry],
      collect: async () => {
        const { requests: count } = await totals();
        requests.reset();
        requests.inc(count);
      },
    });
    const rejected = new Counter({
      name: 'porthole_metadata_server_rejected_total',
      help: 'Requests and connections of guests that their metadata servers refused, by reason.',
      labelNames: ['reason'],
      registers: [this.registry],
      collect: async () => {
        const { rejected: counts } = await totals();
        rejected.reset();
        for (const [reason, count] of Object.entries(counts)) rejected.inc({ reason }, count);
      },
    });
  }
}
