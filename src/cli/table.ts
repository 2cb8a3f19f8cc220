/** Aligned tables for people. */

export interface Column<Row> {
  readonly title: string;
  readonly cell: (row: Row) => string;
  readonly align?: 'right';
  /** Colours the cell; what it says must be said by the text already. */
  readonly paint?: (text: string, row: Row) => string;
}

/** Lines of a table, each with a line break; columns are two spaces apart. Control characters are the caller's to remove. */
export const table = <Row>(
  columns: readonly Column<Row>[],
  rows: readonly Row[],
  paintTitle: (text: string) => string,
): string => {
  const cells = rows.map((row) => columns.map((column) => column.cell(row)));
  const widths = columns.map(({ title }, i) =>
    Math.max(displayWidth(title), ...cells.map((line) => displayWidth(line[i]!))),
  );
  const line = (texts: readonly string[], paint: (text: string, i: number) => string): string => {
    const last = texts.findLastIndex((text) => text !== '');
    return texts
      .slice(0, last + 1)
      .map((text, i) => {
        const space = ' '.repeat(widths[i]! - displayWidth(text));
        if (columns[i]!.align === 'right') return space + paint(text, i);
        return i === last ? paint(text, i) : paint(text, i) + space;
      })
      .join('  ');
  };
  const titles = columns.map(({ title }) => title);
  const lines = [
    line(titles, paintTitle),
    ...cells.map((texts, y) => line(texts, (text, x) => columns[x]!.paint?.(text, rows[y]!) ?? text)),
  ];
  return `${lines.join('\n')}\n`;
};

/** `name: value` lines, the values below each other; empty values are left out. */
export const facts = (
  pairs: readonly (readonly [name: string, value: string | undefined])[],
  paintName: (text: string) => string,
): string => {
  const shown = pairs.filter(([, value]) => value !== undefined && value !== '');
  const width = Math.max(...shown.map(([name]) => name.length)) + 1;
  return shown
    .map(([name, value]) => {
      const indent = `\n${' '.repeat(width + 2)}`;
      return `${paintName(`${name}:`)}${' '.repeat(width - name.length + 1)}${value!.replaceAll('\n', indent)}\n`;
    })
    .join('');
};

const graphemes = new Intl.Segmenter(undefined, { granularity: 'grapheme' });
const isAscii = /^[\x20-\x7e]*$/;
const isWide =
  /[\p{Emoji_Presentation}\p{Script=Han}\p{Script=Hangul}\p{Script=Hiragana}\p{Script=Katakana}\uff01-\uff60]/u;

/** Columns that a text takes on a terminal. */
const displayWidth = (text: string): number => {
  if (isAscii.test(text)) return text.length;
  let width = 0;
  for (const { segment } of graphemes.segment(text)) width += isWide.test(segment) ? 2 : 1;
  return width;
};
