import type { JSX } from 'preact';
import { useState } from 'preact/hooks';
import { call, type ResultOf } from '../api.ts';
import { may } from '../session.ts';
import { useAsked } from '../ui/asked.ts';
import { Dialog } from '../ui/dialog.tsx';
import { Empty, Failure, Loading } from '../ui/states.tsx';
import { type Column, type Sort, Table } from '../ui/table.tsx';
import { complain } from '../ui/toasts.tsx';
import { sizeWord, timeWord } from '../ui/words.ts';

type Image = ResultOf<'listImages'>['images'][number];

const nameOf = ({ name, version }: Image): string => `${name}@${version}`;

const columns: readonly Column<Image>[] = [
  { id: 'name', title: 'Image', width: 'minmax(10rem, 2fr)', cell: nameOf, sortBy: nameOf, isNarrow: true },
  {
    id: 'size',
    title: 'Size',
    width: '7rem',
    cell: ({ sizeBytes }) => sizeWord(sizeBytes),
    sortBy: ({ sizeBytes }) => sizeBytes,
    isNarrow: true,
  },
  { id: 'regions', title: 'Regions', width: 'minmax(8rem, 1fr)', cell: ({ regions }) => regions.join(', ') },
  {
    id: 'digest',
    title: 'Digest',
    width: 'minmax(8rem, 2fr)',
    cell: ({ digest }) => (
      <code title={digest} class="plain">
        {digest}
      </code>
    ),
  },
  {
    id: 'made',
    title: 'Added',
    width: '12rem',
    cell: ({ createdAt }) => timeWord(createdAt),
    sortBy: ({ createdAt }) => createdAt,
  },
];

export default function ImagesView(): JSX.Element {
  const [sort, setSort] = useState<Sort>({ column: 'name', isDescending: false });
  const [selected, setSelected] = useState<ReadonlySet<string>>(new Set());
  const [isAsked, setAsked] = useState(false);
  const images = useAsked([], (signal) => call('listImages', { signal }));
  if (images.error !== undefined)
    return <Failure title="Images could not be listed" detail={images.error.message} again={images.again} />;
  if (images.value === undefined) return <Loading what="images" />;
  const rows = images.value.images;
  const chosen = rows.filter((image) => selected.has(nameOf(image)));
  const what = chosen.length === 1 ? nameOf(chosen[0]!) : `${chosen.length} images`;
  const remove = async (): Promise<void> => {
    setAsked(false);
    for (const { name, version } of chosen)
      await call('removeImage', { params: { image: name, version } }).catch((error: unknown) =>
        complain(`${name}@${version} was not removed`, error),
      );
    setSelected(new Set());
    images.again();
  };
  return (
    <div class="view">
      <div class="view-head">
        <h1>Images</h1>
        <span class="count">{rows.length.toLocaleString('en')}</span>
        {may('operator') && (
          <div class="group" role="group" aria-label="Actions on the selected images">
            <span class="count">{chosen.length === 0 ? 'None selected' : `${chosen.length} selected`}</span>
            <button type="button" class="danger-quiet" disabled={chosen.length === 0} onClick={() => setAsked(true)}>
              Remove
            </button>
          </div>
        )}
      </div>
      <Table
        label="Images"
        columns={columns}
        rows={rows}
        keyOf={nameOf}
        sort={sort}
        onSort={setSort}
        {...(may('operator') && { selected, onSelect: setSelected })}
        empty={
          <Empty title="No images yet">
            <p>Build one with:</p>
            <pre>
              <code>porthole image build tiny</code>
            </pre>
          </Empty>
        }
      />
      {isAsked && (
        <Dialog
          title={`Remove ${what}?`}
          action={`Remove ${what}`}
          isDangerous
          onAction={() => void remove()}
          onCancel={() => setAsked(false)}
        >
          <p>This region’s copy goes. An image that a VM uses stays.</p>
        </Dialog>
      )}
    </div>
  );
}
