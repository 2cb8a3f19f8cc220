import type { Context } from 'hono';
import type { TreePage } from '../../records/index.ts';
import { writeRevision } from '../revision.ts';
import * as routes from '../routes/index.ts';
import { parseTreePath } from '../tree-path.ts';
import { importBytes, modeText, warningsView, yamlText } from './metadata.ts';
import { type Api, type Env, reply, serve, takeTurn } from './serve.ts';
import { treeFor } from './tree-for.ts';

interface PageQuery {
  readonly path: string;
  readonly after?: string | undefined;
  readonly limit: number;
}

interface ViewQuery extends PageQuery {
  readonly uid: number;
  readonly gid?: number | undefined;
  readonly group: readonly number[];
  readonly program?: string | undefined;
  readonly unit?: string | undefined;
}

const pageOf = (c: Context<Env>, { path, after, limit }: PageQuery): TreePage => ({
  path: parseTreePath(path),
  after: after === undefined ? undefined : parseTreePath(after),
  limit,
  signal: c.req.raw.signal,
});

export const servePolicyViews = (api: Api): void => {
  const view = async (c: Context<Env>, name: string, query: ViewQuery, policy?: string): Promise<Response> => {
    const { uid, gid = uid, group, program, unit } = query;
    const caller = { uid, gid, pid: 0, groups: group, program, unit };
    const { entries, more, warnings, ...answer } = await treeFor(api, c, name).view(caller, {
      ...pageOf(c, query),
      policy,
    });
    return reply(routes.viewPolicy, 200, {
      revision: writeRevision(answer, answer.revision),
      entries: entries.map(({ mode, may, ...one }) => ({ ...one, mode: modeText(mode), may: [...may] })),
      more,
      warnings: warningsView(warnings),
    });
  };

  serve(api, routes.viewPolicy, async (c) => {
    takeTurn(c, api);
    return view(c, c.req.valid('param').name, c.req.valid('query'));
  });

  serve(
    api,
    routes.previewView,
    async (c) => {
      takeTurn(c, api);
      return view(c, c.req.valid('param').name, c.req.valid('query'), await yamlText(c, api));
    },
    { bodyBytes: importBytes },
  );

  serve(
    api,
    routes.previewPolicy,
    async (c) => {
      takeTurn(c, api);
      const policy = await yamlText(c, api);
      const tree = treeFor(api, c, c.req.valid('param').name);
      const found = await tree.comparePolicy(policy, pageOf(c, c.req.valid('query')));
      return reply(routes.previewPolicy, 200, {
        revision: writeRevision(found, found.revision),
        warnings: warningsView(found.warnings),
        callers: found.callers.map(({ uids, gids, programs, units, names }) => ({
          ...(uids && { uids: [...uids] }),
          ...(gids && { gids: [...gids] }),
          ...(programs && { programs: [...programs] }),
          ...(units && { units: [...units] }),
          names: [...names],
        })),
        callersLeftOut: found.callersLeftOut,
        entries: found.entries.map(({ path, kind, changes }) => ({
          path,
          kind,
          changes: changes.map(({ callers, gained, lost }) => ({
            callers: [...callers],
            gained: [...gained],
            lost: [...lost],
          })),
        })),
        more: found.more,
      });
    },
    { bodyBytes: importBytes },
  );
};
