import type { z } from 'zod';
import { Live, type LiveNews } from '../live.ts';
import * as routes from '../routes/index.ts';
import { type Api, identityOf, serve, stream } from './serve.ts';
import { operationView, vmView } from './vms.ts';

const newsView = ({ vms, gone, operations }: LiveNews): z.infer<typeof routes.EventsShape> => ({
  vms: vms.map(vmView),
  gone: [...gone],
  operations: operations.map(operationView),
});

export const serveEvents = (api: Api): void => {
  const { kit, vms, operations } = api.manager;
  const live = new Live(kit, vms, operations);

  serve(api, routes.followEvents, async (c) => {
    const last = c.req.valid('header')['last-event-id'];
    return stream(c, api, async (signal) => {
      const told = await live.follow(identityOf(c), last, signal);
      return (async function* () {
        for await (const { event, id, news } of told)
          yield { event, id, data: news === undefined ? {} : newsView(news) };
      })();
    });
  });
};
