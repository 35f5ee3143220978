"""What WhatsApp itself writes into a chat, in the languages of its users: for media, deleted and edited messages.

Words alone decide only where nothing else does: WhatsApp puts a mark of direction (U+200E) before most of them on an
iPhone, and Android writes <...> around them.
"""

from __future__ import annotations

import re

# On Android in < >, for a file that was not exported along.
OMITTED = frozenset(
    """media omitted|video message omitted|video note omitted|medien ausgeschlossen|multimedia omitido|médias omis
    |fichier omis|media omessi|media omesso|mídia oculta|arquivo de mídia oculto|ficheiro não revelado|ficheiros ocultados
    |media weggelaten|media overgeslagen|без медиафайлов|файл пропущен|медіа пропущено|без медіафайлів|medya dahil edilmedi
    |pominięto multimedia|pliki multimedialne pominięto|媒体文件已忽略|已忽略媒體|略去多媒體檔案|省略多媒體檔案|媒體已略去
    |省略多媒体文件|忽略多媒体文件|媒体已省略|媒体省略|メディアなし|メディアは含まれていません|미디어 파일을 제외함
    |미디어 파일 제외됨|미디어 제외됨|تم استبعاد الوسائط|تم استثناء الوسائط|המדיה לא נכללה|media tidak disertakan
    |media dihilangkan|मीडिया छोड़ा गया|मीडिया के बिना|bỏ qua media|ไม่รวมสื่อ|média vynechána|médium vynechané|média kihagyva
    |mediat jätettiin pois|media utelämnades|media er utelatt|medier udeladt|media omis|εξαίρεση πολυμέσων
    |ไม่มีสื่อ|mediji su izostavljeni""".replace("\n", "")
    .replace("    |", "|")
    .strip()
    .split("|")
)
# On an iPhone, where the mark in front was lost on the way: `image omitted`, `report.pdf • 3 pages document omitted`.
_WHAT = (
    "image|video|audio|gif|sticker|document|contact card|video note|bild|dokument|kontaktkarte|imagen|vídeo|vcard|documento"
    "|tarjeta de contacto|vidéo|carte du contact|immagine|scheda contatto|imagem|figurinha|afbeelding|contactkaart"
    "|изображение|видео|аудио|стикер|документ"
)
_GONE = (
    "omitted|weggelassen|omitido|omitida|omis|omise|absente?|omesso|omessa|oculto|oculta|ocultado|ocultada|weggelaten"
    "|отсутствует|опущено"
)
OMITTED_ON_IPHONE = re.compile(
    rf"(?:(?:.*(?:•|\.\w{{2,5}}\b).*)?\b(?:{_WHAT}) (?:{_GONE})|(?:图像|图片|影像|視訊|视频|音訊|音频|語音|贴图|貼圖|文件|文件夹|動態圖片|GIF)(?:已忽略|已略去|略去|忽略)"
    r"|(?:画像|動画|音声|スタンプ|GIF)は含まれていません|(?:사진|동영상|음성|이모티콘) 생략)",
    re.IGNORECASE,
)
# `IMG-20240304-WA0003.jpg (file attached)`, in any language; on an iPhone `<attached: 00000012-PHOTO-....jpg>`.
ATTACHED = re.compile(r"[^\n/\\:*?\"<>|]{1,200}\.\w{2,5} \([^()\n]{3,40}\)")
# People write links so, too: <https://...>, <mailto:...>.
ATTACHED_ON_IPHONE = re.compile(
    r"(?:\u200e<[^<>:：\n]{2,30}[:：] ?|<[^<>:\n]{3,30}:[ \u00a0])(?!//)[^<>\n]{1,200}\.\w{2,5}>"
)
LOCATION = re.compile(r"\S+ ?: https://maps\.google\.com/\?q=\S+")
POLL = re.compile(
    r"(?:POLL|UMFRAGE|ENCUESTA|SONDAGE|SONDAGGIO|ENQUETE|VOTAÇÃO|PEILING|ОПРОС|投票|アンケート|투표) ?:\n"
)

DELETED = frozenset(
    """this message was deleted|you deleted this message|message deleted|this message was deleted by admin
    |diese nachricht wurde gelöscht|du hast diese nachricht gelöscht|se eliminó este mensaje|este mensaje fue eliminado
    |eliminaste este mensaje|mensaje eliminado|ce message a été supprimé|vous avez supprimé ce message
    |questo messaggio è stato eliminato|hai eliminato questo messaggio|essa mensagem foi apagada|mensagem apagada
    |esta mensagem foi apagada|você apagou essa mensagem|apagou esta mensagem|dit bericht is verwijderd
    |je hebt dit bericht verwijderd|u hebt dit bericht verwijderd|это сообщение было удалено|данное сообщение удалено
    |вы удалили это сообщение|вы удалили данное сообщение|це повідомлення було видалено|bu mesaj silindi
    |bu mesajı sildiniz|ta wiadomość została usunięta|usunięto tę wiadomość|此消息已被删除|此消息已删除|您已删除此消息
    |您删除了这条消息|此訊息已刪除|此訊息已被刪除|您已刪除此訊息|你已刪除此訊息|このメッセージは削除されました
    |メッセージを削除しました|삭제된 메시지입니다|이 메시지를 삭제했습니다|تم حذف هذه الرسالة|لقد حذفت هذه الرسالة
    |הודעה זו נמחקה|pesan ini telah dihapus|pesan ini dihapus|anda telah menghapus pesan ini|यह मैसेज मिटाया गया
    |tin nhắn này đã bị xóa|ข้อความนี้ถูกลบ""".replace("\n", "")
    .replace("    |", "|")
    .strip()
    .split("|")
)
# With a name behind it: of who has the say in a group.
DELETED_BY = re.compile(
    r"(?:this message was deleted by admin .{1,100}|you deleted this message as admin|diese nachricht wurde von (?:admin )?.{1,100} gelöscht"
    r"|du hast diese nachricht als admin gelöscht)\.?",
    re.IGNORECASE,
)
EDITED = frozenset(
    """this message was edited|diese nachricht wurde bearbeitet|se editó este mensaje|este mensaje fue editado
    |ce message a été modifié|questo messaggio è stato modificato|mensagem editada|essa mensagem foi editada
    |esta mensagem foi editada|dit bericht is bewerkt|данное сообщение изменено|это сообщение было изменено
    |bu mesaj düzenlendi|ta wiadomość była edytowana|此消息已编辑|此消息已被编辑|此訊息已編輯|此訊息已被編輯
    |このメッセージは編集されました|편집된 메시지입니다|تم تعديل هذه الرسالة|pesan ini diedit|pesan ini telah diedit""".replace(
        "\n", ""
    )
    .replace("    |", "|")
    .strip()
    .split("|")
)
# A call, and what stands behind it: nothing, when it was, how to call back, how long it took. Anything else somebody wrote.
_MISSED = (
    r"(?:missed|silenced) (?:group )?(?:voice|video) call|verpasster (?:sprach|video)anruf"
    r"|llamada perdida|videollamada perdida|appel (?:vocal|vidéo) manqué|chiamata vocale persa|chamada de (?:voz|vídeo) perdida"
    r"|gemiste (?:spraak|video)oproep|пропущенный (?:аудио|видео)?звонок|未接语音通话|未接视频通话|未接語音來電|未接視訊來電"
)
_WHEN = r" ?\w{0,6} ?\d{1,2}[:.]\d\d(?: ?[ap]\.?m\.?)?"
_AGAIN = (
    r"(?:tap|click|zum zurückrufen|toca|pulsa|appuyez|touchez|tocca|toque|tik|нажмите|点击|點擊|點按)[^.!?\n]{0,40}"
)
_LONG = r"(?:\d+ ?(?:h|hrs?|hours?|mins?|minutes?|secs?|seconds?|std|sek|s)\b\.?,? ?){1,3}|no answer|not answered"
_CALLS = (
    rf"(?:{_MISSED})(?:{_WHEN})?(?:[.,，]? ?\u200e?(?:{_AGAIN}))?|(?:voice|video) call[.,] ?(?:\u200e.{{0,40}}|{_LONG})"
    r"|live location shared|standort wird live geteilt|waiting for this message(?:\. this may take a while)?"
)
_EVENTS = (
    r"end-to-end encrypted|ende-zu-ende-verschl|extremo a extremo|de bout en bout|end-to-end-versleuteld"
    r"|crittografati end-to-end|crittografia end-to-end|ponta a ponta|сквозным шифрованием|端到端加密|端对端加密|端對端加密"
    r"|エンドツーエンド|종단간 암호화|uçtan uca şifreli|security code (?:with .* )?changed|sicherheitsnummer"
    r"|changed the (?:subject|group|settings)|created (?:the )?group|changed this group"
    r"|(?:you're|is) now an admin|joined using (?:this group's|an) invite|disappearing messages|turned (?:on|off)"
)
# A line without a name, or with a name that is no person's: it is WhatsApp's own where it says one of these.
EVENT = re.compile(rf"(?:{_EVENTS})", re.IGNORECASE)
# The notice of encryption, which an iPhone writes in the name of the partner.
NOTICE = re.compile(
    r"\W*(?:messages and calls|nachrichten und anrufe|los mensajes|les messages|as mensagens|i messaggi|berichten en oproepen"
    r"|消息和通话|訊息和通話|訊息與通話)",
    re.IGNORECASE,
)
# Lines without a name in which a colon may stand behind somebody's.
OWN = re.compile(
    r"(?:your security code|deine sicherheitsnummer|ihre sicherheitsnummer|tu código de seguridad|votre code de sécurité"
    r"|seu código de segurança|il tuo codice di sicurezza|je beveiligingscode)",
    re.IGNORECASE,
)
CALL = re.compile(rf"(?:{_CALLS})\.?", re.IGNORECASE)


def is_one_of(words: frozenset[str], text: str) -> bool:
    """Whether a text is one of the words, whatever its case, its marks and the stop behind it."""
    bare = text.strip("\u200e\u200f \n").rstrip(".。").casefold()
    return bare in words
