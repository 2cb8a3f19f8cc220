/** Images, and the files that they are made from. */
import type { z } from '@hono/zod-openapi';
import type { Context } from 'hono';
import type { ImageFile, ImageRecord, ImageRequest, Once, PartialUpload, Upload } from '../../records/index.ts';
import type { Answer } from '../idempotency.ts';
import { KeyedUploads } from '../keyed-uploads.ts';
import { ApiError, isHostError, toApiError } from '../problem.ts';
import * as routes from '../routes/index.ts';
import {
  type Api,
  answerOf,
  type Env,
  idempotencyKey,
  identityOf,
  noContent,
  onceRequest,
  reply,
  send,
  serve,
} from './serve.ts';
import { isoTime, operationView } from './vms.ts';

const imageView = ({ name, version, digest, sizeBytes, virtualSizeBytes, regions = [], createdAtMs }: ImageRecord) => ({
  name,
  version,
  digest,
  sizeBytes,
  virtualSizeBytes,
  regions: [...regions],
  createdAt: isoTime(createdAtMs),
});

type AskedFile = { readonly upload: string } | { readonly file: string };
const fileOf = (asked: AskedFile): ImageFile =>
  'upload' in asked ? { from: 'upload', id: asked.upload } : { from: 'host', path: asked.file };

const sourceOf = ({
  upload,
  file,
  format,
  kernel,
  recipe,
}: z.output<typeof routes.AddImage>): ImageRequest['source'] => {
  if (recipe !== undefined) return { kind: 'recipe', recipe };
  if (kernel === undefined)
    return { kind: 'disk', disk: fileOf(upload === undefined ? { file: file! } : { upload }), format };
  const { initrd, commandLine } = kernel;
  return { kind: 'kernel', kernel: fileOf(kernel.kernel), initrd: initrd && fileOf(initrd), commandLine };
};

const uploadView = (upload: Upload | PartialUpload) => ({
  id: upload.id,
  receivedBytes: 'receivedBytes' in upload ? upload.receivedBytes : upload.sizeBytes,
  ...('digest' in upload && { digest: upload.digest }),
  expiresAt: isoTime(upload.expiresAtMs),
});

/** The bytes of an upload, which end with who sends them. */
const bodyOf = (c: Context<Env>) => {
  const length = c.req.header('content-length');
  const { body, signal } = c.req.raw;
  if (length === undefined || Number(length) === 0 || body === null)
    throw new ApiError('BAD_REQUEST', 'an upload needs a body that is not empty, and its Content-Length');
  const { ended } = identityOf(c);
  return { length: Number(length), body, signal: AbortSignal.any([signal, ...(ended ? [ended] : [])]) };
};

const brokenOff = (cause: unknown): ApiError =>
  new ApiError('BAD_REQUEST', 'the upload broke off; send the file again', {}, cause);

export const serveImages = (api: Api): void => {
  const { images, idempotency, kit } = api.manager;
  const keyedUploads = new KeyedUploads(kit.wallMs);

  serve(
    api,
    routes.uploadFile,
    async (c) => {
      const { length, body, signal } = bodyOf(c);
      const { account } = identityOf(c);
      const receive = async () => {
        await using incoming = await kit.images.openUpload(account, length, { signal });
        api.expectLong(c.env);
        try {
          const { expiresAtMs, ...upload } = await incoming.receive(body, { signal });
          const answer = answerOf(routes.uploadFile, 201, { ...upload, expiresAt: isoTime(expiresAtMs) });
          return { answer, expiresAtMs };
        } catch (error) {
          if (!signal.aborted) throw error;
          throw brokenOff(error);
        }
      };
      return send(await keyedUploads.run({ account, key: idempotencyKey(c) }, length, receive));
    },
    { bodyBytes: Number.MAX_SAFE_INTEGER },
  );

  serve(
    api,
    routes.resumeUpload,
    async (c) => {
      const { body, signal } = bodyOf(c);
      const { upload: id } = c.req.valid('param');
      const { offset, sizeBytes } = c.req.valid('query');
      const { account } = identityOf(c);
      api.expectLong(c.env);
      try {
        const upload = await kit.images.resumeUpload({ account, id, offset, sizeBytes }, body, { signal });
        return reply(routes.resumeUpload, 200, uploadView(upload));
      } catch (error) {
        if (!signal.aborted) throw error;
        throw brokenOff(error);
      }
    },
    { bodyBytes: Number.MAX_SAFE_INTEGER },
  );

  serve(api, routes.findUpload, async (c) => {
    try {
      const { account } = identityOf(c);
      const upload = await kit.images.findUpload(account, c.req.valid('param').upload);
      return reply(routes.findUpload, 200, uploadView(upload));
    } catch (error) {
      if (isHostError(error) && error.code === 'HOST_NOT_FOUND')
        throw new ApiError('NOT_FOUND', error.message, {}, error);
      throw error;
    }
  });

  serve(api, routes.listImages, async (c) =>
    reply(routes.listImages, 200, { images: (await images.list(identityOf(c).account)).map(imageView) }),
  );

  serve(api, routes.addImage, async (c) => {
    const asked = c.req.valid('json');
    const { name, version } = asked;
    const { account } = identityOf(c);
    const source = sourceOf(asked);
    const files =
      source.kind === 'disk' ? [source.disk] : source.kind === 'kernel' ? [source.kernel, source.initrd] : [];
    if (files.some((file) => file?.from === 'host') && !c.get('isLocal'))
      throw new ApiError('FORBIDDEN', 'a file of the host can be added over its unix socket only; upload it');
    const answer = await idempotency.run(await onceRequest(c), (commit) =>
      images.add(account, { name, version, source }, commit, (operation) =>
        answerOf(routes.addImage, 202, operationView(operation), { location: `/v1/operations/${operation.id}` }),
      ),
    );
    return send(answer);
  });

  serve(api, routes.getImage, async (c) => {
    const { image, version } = c.req.valid('param');
    return reply(routes.getImage, 200, imageView(await images.get(identityOf(c).account, image, version)));
  });

  serve(api, routes.removeImage, async (c) => {
    const { image, version } = c.req.valid('param');
    const { account } = identityOf(c);
    const effect = async (once: Once | undefined): Promise<Answer> => {
      try {
        await images.remove(account, image, version);
      } catch (error) {
        // An earlier try of the same request got as far as that.
        if (once?.isRepeat !== true || toApiError(error).code !== 'NOT_FOUND') throw error;
      }
      return noContent;
    };
    return send(await idempotency.runOutside(await onceRequest(c), effect, (error) => !(error instanceof ApiError)));
  });

  serve(api, routes.copyImage, async (c) => {
    const { image: name, version } = c.req.valid('param');
    const { from, move: moves } = c.req.valid('json');
    const { account } = identityOf(c);
    const answer = await idempotency.run(await onceRequest(c), (commit) =>
      images.copy(account, { name, version, from, moves }, commit, (operation) =>
        answerOf(routes.copyImage, 202, operationView(operation), { location: `/v1/operations/${operation.id}` }),
      ),
    );
    return send(answer);
  });

  serve(api, routes.readImageBlob, async (c) => {
    const { image: name, version, digest } = c.req.valid('param');
    const { offset } = c.req.valid('query');
    const { account, ended } = identityOf(c);
    const signal = AbortSignal.any([c.req.raw.signal, ...(ended ? [ended] : [])]);
    const { sizeBytes, bytes } = await images.blob(account, { name, version }, digest, { offset, signal });
    const body = streamOf(bytes, (error) => {
      kit.log.warn({ err: error, image: name, version }, 'an image could not be read to its end');
      c.env.outgoing.destroy();
    });
    return new Response(body, {
      headers: {
        'content-type': 'application/octet-stream',
        'content-length': String(Math.max(0, sizeBytes - offset)),
        'cache-control': 'no-store',
      },
    });
  });
};

/** As fast as they are taken. `broke`: ends the connection, so that fewer bytes than were told are no whole answer. */
const streamOf = (bytes: AsyncIterable<Uint8Array>, broke: (error: unknown) => void): ReadableStream<Uint8Array> => {
  const iterator = bytes[Symbol.asyncIterator]();
  let isCancelled = false;
  return new ReadableStream(
    {
      pull: async (controller) => {
        try {
          const { done, value } = await iterator.next();
          if (isCancelled) return;
          if (done === true) controller.close();
          else controller.enqueue(value);
        } catch (error) {
          if (isCancelled) return;
          broke(error);
          controller.close();
        }
      },
      cancel: async () => {
        isCancelled = true;
        await iterator.return?.();
      },
    },
    { highWaterMark: 0 },
  );
};
